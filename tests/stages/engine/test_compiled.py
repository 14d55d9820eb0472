"""A compiled network computes what it computed before, in training and in sampling."""

import shutil

import pytest
import torch
from torch import nn

from models.blocks import ResidualBlock
from stages.engine.compiled import compile_network, is_of_the_compiler

CPU = torch.device("cpu")


def network() -> nn.Module:
    torch.manual_seed(0)
    block = ResidualBlock(4, 8)
    nn.init.normal_(block.conv2.weight, std=0.1)
    return block


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_gradients_and_predictions_are_those_of_the_network_as_it_was():
    plain, compiled, constant = (network() for _ in range(3))
    compile_network(compiled, CPU)
    compile_network(constant.eval().requires_grad_(False), CPU, constant=True)
    x = torch.randn(2, 4, 4, 4)
    for net in (plain, compiled):
        net(x).square().mean().backward()
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for (name, a), (_, b) in zip(plain.named_parameters(), compiled.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    with torch.no_grad():
        for batch in (x, x.repeat(2, 1, 1, 1)):
            torch.testing.assert_close(constant(batch), plain(batch), rtol=1e-3, atol=1e-5)


def test_what_torch_s_compiler_raises_is_told_from_other_errors():
    from torch._inductor.exc import InductorError

    assert is_of_the_compiler(InductorError(ValueError("no Python.h"), None))
    assert not is_of_the_compiler(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
