"""A compiled network computes the same as before, in training and in sampling."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.engine.compiled import compile_network, of_the_compiler

CPU = torch.device("cpu")


class Small(nn.Module):
    """A convolution and what torch's compiler makes a kernel of: each of its forms takes seconds to compile."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv1(x))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Small()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_gradients_and_predictions_are_those_of_the_network_as_it_was():
    """Networks of one shape share no frozen weights, and a pass without gradients does not freeze a trained network."""
    plain, compiled, frozen, other = network(), network(), network(), network(1)
    compile_network(compiled, CPU)
    for net in (frozen, other):
        compile_network(net.eval().requires_grad_(False), CPU, constant=True)
    x, counters = torch.randn(2, 4, 4, 4), torch._dynamo.utils.counters
    before = counters["frames"]["ok"]
    for net in (plain, compiled):
        net(x).square().mean().backward()
    assert counters["frames"]["ok"] > before, "nothing was compiled"
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for (name, a), (_, b) in zip(plain.named_parameters(), compiled.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    with torch.no_grad():
        for batch in (x, x.repeat(2, 1, 1, 1)):
            torch.testing.assert_close(frozen(batch), plain(batch), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(other(x), network(1)(x), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(compiled(x), plain(x), rtol=1e-3, atol=1e-5)
        for net in (plain, compiled, frozen):
            net.conv1.weight.mul_(2)
        torch.testing.assert_close(compiled(x), plain(x), rtol=1e-3, atol=1e-5)
        assert not torch.allclose(frozen(x), plain(x), rtol=1e-3), "frozen weights were read again"


def test_what_torch_s_compiler_raises_is_told_from_other_errors():
    from torch._inductor.exc import InductorError

    assert "no Python.h" in str(of_the_compiler(InductorError(ValueError("no Python.h"), None)))
    assert of_the_compiler(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
