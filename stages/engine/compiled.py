"""torch.compile for a network, where a configuration asks for it."""

import os
import shutil
import sys

import torch
from torch import nn

from stages.engine.errors import UserError

MEND = "install one and Python's headers, or leave `compile` false in ldm, ddpm and eval"


def compile_network(network: nn.Module, device: torch.device, constant: bool = False) -> None:
    """Compiles the network's calls, at its first and once more for each batch size. Its weights keep their names.

    `constant`: the weights will never change again, so that on a CPU they are cast and packed once ("freezing"), not at
    every call. What was compiled is kept on disk by torch and serves the next process. Raises UserError where a CPU has
    no compiler.
    """
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # as torch looks for it
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(f"torch.compile wants a C++ compiler, and {compiler} is none that can be run here; {MEND}")
    options = {"freezing": True} if constant and device.type == "cpu" else None
    network.compile(dynamic=False, options=options)


def is_of_the_compiler(error: BaseException) -> bool:
    """True for what torch.compile raises where it cannot work, as without Python's headers."""
    return any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__)
