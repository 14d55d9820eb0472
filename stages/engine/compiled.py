"""torch.compile for a network, where a configuration asks for it."""

import os
import shlex
import shutil
import sys

import torch
from torch import Tensor, nn

from stages.engine import distributed
from stages.engine.errors import UserError, oneline

MEND = "install one and Python's headers, or leave `compile` false in ldm, ddpm and eval"
OF_THE_COMPILER = {
    "torch._dynamo.exc.BackendCompilerFailed",
    "torch._inductor.exc.TritonMissing",
    "torch._inductor.exc.GPUTooOldForTriton",
}
FORMS = 64  # that torch keeps of one function, of all networks of a class together; its own 8 are soon used up


def missing_compiler(device: torch.device) -> str | None:
    """The compiler that torch.compile would call for this device and that cannot be run here; None if none lacks.

    C++ for a CPU, as torch looks for it; C for a GPU, as Triton does.
    """
    if device.type == "cuda":
        variable, usual = "CC", ["gcc", "clang"]
    else:
        variable, usual = "CXX", ["clang++" if sys.platform == "darwin" else "g++"]
    compilers = shlex.split(os.environ.get(variable, ""))[:1] or usual
    return None if any(map(shutil.which, compilers)) else compilers[0]


def compile_network(network: nn.Module, device: torch.device, constant: bool = False) -> None:
    """Compiles the network's calls, at its first and once more for each batch size. Its weights keep their names.

    `constant`: the weights will never change again, so that on a CPU they are cast and packed once ("freezing"), not at
    every call. What was compiled is kept on disk by torch and serves the next process. Raises UserError where a CPU has
    no compiler, and for batch norms over several processes.
    """
    if compiler := missing_compiler(device):
        raise UserError(f"torch.compile wants a compiler, and {compiler} is none that can be run here; {MEND}")
    if distributed.has_global_batch_norms(network):
        raise UserError("batch norms over several processes cannot be compiled: leave ddpm.compile false")
    import torch._dynamo.config  # seconds to import: only where it is asked for
    import torch._inductor.config

    compiled, frozen = torch.compile(network.forward, dynamic=False), constant and device.type == "cpu"

    def forward(*inputs: Tensor | None) -> Tensor:
        # while it is called, not once for all: a network that still learns must not be frozen beside this one
        with torch._dynamo.config.patch(recompile_limit=FORMS), torch._inductor.config.patch(freezing=frozen):
            return compiled(*inputs)

    network.forward = forward


def of_the_compiler(error: BaseException) -> UserError | None:
    """What torch's compiler says of itself, as one line; None for any other error, the network's own among them."""
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    if not kinds & OF_THE_COMPILER:
        return None
    inner = getattr(error, "inner_exception", error)
    return UserError(f"torch.compile failed here ({oneline(inner)[:100]}); if it wants a compiler, {MEND}")
