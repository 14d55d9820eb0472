"""Compiles a network with torch.compile if the configuration asks for it."""

import os
import shlex
import shutil
import sys

import torch
from torch import Tensor, nn

from stages.engine import distributed
from stages.engine.errors import UserError, oneline
from stages.engine.values import Compiled

FIX = "install one and Python's headers, or leave `compile` false in ldm, ddpm and eval"
OF_THE_COMPILER = {
    "torch._dynamo.exc.BackendCompilerFailed",
    "torch._inductor.exc.TritonMissing",
    "torch._inductor.exc.GPUTooOldForTriton",
}
FORMS = 64  # compiled forms torch keeps of one function, for all networks of a class; its default of 8 is soon used up


def missing_compiler(device: torch.device) -> str | None:
    """Returns the name of the compiler that torch.compile needs for this device but cannot run, or None.

    A CPU needs C++, looked up as torch does; a GPU needs C, looked up as Triton does.
    """
    if device.type == "cuda":
        variable, usual = "CC", ["gcc", "clang"]
    else:
        variable, usual = "CXX", ["clang++" if sys.platform == "darwin" else "g++"]
    compilers = shlex.split(os.environ.get(variable, ""))[:1] or usual
    return None if any(map(shutil.which, compilers)) else compilers[0]


def compile_network(network: nn.Module, device: torch.device, how: Compiled, constant: bool = False) -> None:
    """Compiles the network at its first call and again for each new batch size. Its weights keep their names.

    `how`, if "cuda-graphs" and on a GPU: all kernels of a call are launched as one CUDA graph. A graph overwrites its
    last output, so the output is copied. `constant`: the weights never change again, so on a CPU they are cast and
    packed once ("freezing"), not at every call. torch keeps the compiled code on disk for later processes. Raises
    UserError if there is no compiler, and for batch norms over several processes.
    """
    if compiler := missing_compiler(device):
        raise UserError(f"torch.compile needs a compiler, and {compiler} cannot be run here; {FIX}")
    if distributed.has_global_batch_norms(network):
        raise UserError("batch norms over several processes cannot be compiled: set ddpm.compile=false")
    import torch._dynamo.config  # seconds to import: only where it is asked for
    import torch._inductor.config

    frozen, graphs = constant and device.type == "cpu", how == "cuda-graphs" and device.type == "cuda"
    compiled = torch.compile(network.forward, dynamic=False, mode="reduce-overhead" if graphs else None)

    def forward(*inputs: object) -> Tensor:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()  # nothing of the call before is in use
        # set for this call, not globally: a network that is still training must not be frozen too
        with torch._dynamo.config.patch(recompile_limit=FORMS), torch._inductor.config.patch(freezing=frozen):
            made = compiled(*inputs)
        return made.clone() if graphs else made

    network.forward = forward


def of_the_compiler(error: BaseException) -> UserError | None:
    """Returns an error of torch's compiler as a one-line UserError; None for other errors, such as the network's."""
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    if not kinds & OF_THE_COMPILER:
        return None
    inner = getattr(error, "inner_exception", error)
    return UserError(f"torch.compile failed here ({oneline(inner)[:100]}); if a compiler is missing, {FIX}")
