"""One sampling calls a network many times with one condition: what follows from that alone is computed once."""

import pytest
import torch

from models.condition import Condition
from models.diffusion import Diffusion
from models.multiply_add_unet import MultiplyAddUNet
from models.patches import PatchUNet
from models.self_condition import Remembering
from models.unet import UNet

WHOLE = {"order": True, "places": True, "pooled": True}
NETWORKS = {
    "unet": lambda: UNet(channels=16, blocks=1, head_width=8, context=16, self_condition=True, depth=2, **WHOLE),
    "vector": lambda: UNet(channels=16, blocks=1, head_width=8, context=16, condition="vector"),
    "patches": lambda: PatchUNet(24, 3, 8, channels=16, side=64, blocks=1, head_width=8, context=16, **WHOLE),
    "multiply-add": lambda: MultiplyAddUNet(24, 100, 8, places=True),
}


class Forgetful:
    """A network that is given its condition at each call."""

    def __init__(self, network):
        self.network, self.self_condition = network, getattr(network, "self_condition", False)

    def __call__(self, *arguments):
        return self.network(*arguments)


def of(name):
    """Returns a network whose layers that start at zero do not hide the others."""
    torch.manual_seed(0)
    network = NETWORKS[name]().eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return network, (2, 6, 8, 8) if name in ("unet", "vector") else (2, 3, 64, 64)


ASKED = Condition.of_lists([[1, 5], [7]], 24, [[(0.2, 0.3), (0.7, 0.6)], [None]])


@torch.no_grad()
def test_what_a_condition_says_is_an_input_of_one_graph():
    """A call that torch.compile had to break in two would be two CUDA graphs with Python between them."""
    network, shape = UNet(channels=8, multipliers=(1,), blocks=1, head_width=8, context=8, **WHOLE), (2, 6, 8, 8)
    said = network.told(ASKED, None, shape[2])
    whole = torch.compile(network.forward, backend="eager", fullgraph=True, dynamic=False)
    x, t = torch.randn(shape), torch.tensor([3, 90])
    assert torch.equal(whole(x, t, said), network(x, t, ASKED))


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_sampling_asks_once_what_the_condition_says_and_predicts_the_same_bits(name, monkeypatch):
    network, shape = of(name)
    diffusion, calls = Diffusion.create("cosine", 100, "v"), []
    kept = Remembering(Forgetful(network), diffusion, ASKED)
    once = Remembering(network, diffusion, ASKED)
    compute = network.told
    monkeypatch.setattr(network, "told", lambda *arguments: calls.append(1) or compute(*arguments))
    x = torch.randn(shape)
    for t, keep in ((90, (True,)), (60, (True, False)), (30, (True, False)), (20, (False,)), (10, (True,))):
        before = len(calls)
        found = once(x, t, keep)
        new = len(calls) - before
        expected = kept(x, t, keep)
        assert torch.equal(found, expected)
        assert new == (t in (90, 60, 20)), "once for each `keep`"
        x = 0.9 * x + 0.1 * found[:2]
