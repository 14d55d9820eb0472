"""The multiply-add U-Net's conditions by its formula, and its weights as they start."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.multiply_add_unet import Embedding, MultiplyAddUNet

CLASSES, TIMESTEPS = 5, 40


def small(paths="up+down", width=8):
    torch.manual_seed(0)
    return MultiplyAddUNet(CLASSES, TIMESTEPS, width, paths).eval()


def maps_of(network, *arguments):
    """What enters and what leaves each block of a forward pass: {name: (first input, output)}."""
    seen = {}

    def note(name):
        return lambda module, inputs, output: seen.__setitem__(name, (inputs[0], output))

    for name in ("enter", "down1", "down2", "grow", "up1", "up2"):
        getattr(network, name).register_forward_hook(note(name))
    with torch.no_grad():
        network(*arguments)
    return seen


@pytest.mark.parametrize(
    ("paths", "conditioned"), [("up", {"up1", "up2"}), ("up+down", {"up1", "up2", "down1", "down2"})]
)
def test_a_block_s_map_is_multiplied_by_the_label_s_embedding_and_the_time_s_is_added(paths, conditioned):
    network, x, t = small(paths), torch.randn(3, 3, 32, 32), torch.tensor([0, 17, 39])
    labels = torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 1, 0, 0, 0]])
    seen = maps_of(network, x, t, labels, torch.tensor([True, True, False]))
    before = {
        "down1": seen["enter"][1],
        "down2": F.max_pool2d(seen["down1"][1], 2),
        "up1": seen["grow"][1],
        "up2": seen["up1"][1],
    }
    kept = torch.cat([labels[:2], torch.zeros(1, CLASSES)])  # a dropped set is all zeros
    assert network.label.keys() == network.time.keys() == conditioned
    for name, plain in before.items():
        expected = plain
        if name in conditioned:
            c, plus = network.label[name](kept), network.time[name](torch.tensor([[0.0], [17 / 40], [39 / 40]]))
            assert c.std() > 0.01 and plus.std() > 0.01  # neither is hidden
            expected = c * plain + plus
        torch.testing.assert_close(seen[name][0], expected)


def test_an_embedding_by_hand():
    torch.manual_seed(0)
    embedding = Embedding(2, 3)
    first, _, second = embedding.body
    x = torch.randn(4, 2)
    hidden = x @ first.weight.T + first.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))  # GELU
    expected = hidden @ second.weight.T + second.bias
    assert embedding(x).shape == (4, 3, 1, 1)
    torch.testing.assert_close(embedding(x)[:, :, 0, 0], expected)


@pytest.mark.parametrize(
    ("kinds", "mean"), [((nn.Conv2d, nn.ConvTranspose2d), 0.0), ((nn.BatchNorm2d, nn.GroupNorm), 1.0)]
)
def test_weights_start_as_dcgan_s(kinds, mean):
    """Each within five standard errors of its mean and of .02: convolutions about 0, norms about 1; biases 0."""
    found = [m for m in small(width=16).modules() if isinstance(m, kinds)]
    assert {type(m) for m in found} == set(kinds)
    for module in found:
        weight, error = module.weight.double(), 0.02 / module.weight.numel() ** 0.5
        assert abs(weight.mean() - mean) < 5 * error
        assert abs(weight.std() - 0.02) < 5 * error
        assert not module.bias.any()
