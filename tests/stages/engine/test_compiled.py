"""A compiled network computes the same as before, in training and in sampling."""

import shlex
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.condition import Condition
from models.layouts import LayoutPrior
from models.unet import UNet
from stages.diffusion import DiffusionSampler
from stages.engine.command import Context
from stages.engine.compiled import compile_network, missing_compiler, of_the_compiler
from stages.engine.config import load
from stages.engine.errors import UserError
from tests.conftest import SMOKE

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
    compile_network(compiled, CPU, True)
    for net in (frozen, other):
        compile_network(net.eval().requires_grad_(False), CPU, True, constant=True)
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


class Replayed:
    """Stands for a CUDA graph: each call writes its output where the call before wrote its own."""

    def __init__(self, function, modes, dynamic=None, mode=None):
        self.function, self.outputs = function, {}
        modes.append(mode)

    def __call__(self, *inputs):
        made = self.function(*inputs)
        if made.requires_grad:  # with its graph, which only a real one can replay
            return made
        return self.outputs.setdefault(made.shape, made.clone()).copy_(made)


@pytest.mark.parametrize("sampler", ["ddim", "dpm-solver++", "ancestral"])
@pytest.mark.parametrize("prediction", ["x0", "noise"])
@torch.no_grad()
def test_outputs_that_the_next_call_overwrites_change_no_picture(monkeypatch, sampler, prediction):
    modes, marks = [], []
    monkeypatch.setattr(torch, "compile", lambda function, **options: Replayed(function, modes, **options))
    monkeypatch.setattr("torch.compiler.cudagraph_mark_step_begin", lambda: marks.append(1))
    monkeypatch.setattr("stages.engine.compiled.missing_compiler", lambda device: None)
    changes = [f"eval.sampler={sampler}", f"ldm.prediction={prediction}", "ldm.timesteps=5", "eval.steps=4"]
    config = load(SMOKE, [*changes, "eval.guidance=2", "eval.interval=[0.3,0.9]", "eval.batch=2"])
    context = Context(config, CPU, torch.float32, None, 0.0, None)
    asked, found = Condition.of_lists([[1, 5], [7]], 24), []
    for how in (False, "cuda-graphs"):
        torch.manual_seed(0)
        unet = UNet(channels=16, blocks=1, head_width=8, context=16, self_condition=True).eval()
        for parameter in unet.parameters():
            nn.init.normal_(parameter, std=0.1)
        if how:
            compile_network(unet, torch.device("cuda"), how, constant=True)
        drawn = DiffusionSampler(context, "ldm", unet, config.ldm, (6, 8, 8), lambda x: x, LayoutPrior())
        found.append(drawn.sample(asked, [(0, "test", i) for i in range(2)], config.eval))
    assert torch.equal(*found)
    assert modes == ["reduce-overhead"]
    assert len(marks) >= 3  # one a call


def test_only_a_gpu_has_graphs(monkeypatch):
    modes = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: Replayed(function, modes, **options))
    monkeypatch.setattr("stages.engine.compiled.missing_compiler", lambda device: None)
    for device, how in (("cpu", "cuda-graphs"), ("cpu", True), ("cuda", True)):
        compile_network(network(), torch.device(device), how)
    assert modes == [None] * 3


def test_graphs_do_not_add_gradients_up():
    load(SMOKE, ["ldm.compile=cuda-graphs"])
    load(SMOKE, ["ldm.compile=true", "ldm.batch=8", "ldm.accumulate=2"])
    for refused in (["ldm.compile=cuda-graphs", "ldm.batch=8", "ldm.accumulate=2"], ["eval.compile=graphs"]):
        with pytest.raises(UserError, match="compile"):
            load(SMOKE, refused)


@pytest.mark.parametrize(("device", "variable"), [("cpu", "CXX"), ("cuda", "CC")])
def test_the_compiler_that_is_looked_for_is_the_one_that_the_environment_names(monkeypatch, device, variable):
    monkeypatch.setenv(variable, "no-such-compiler -m64")
    assert missing_compiler(torch.device(device)) == "no-such-compiler"
    monkeypatch.setenv(variable, f"{shlex.quote(sys.executable)} -m64")
    assert missing_compiler(torch.device(device)) is None
