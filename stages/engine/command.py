"""A stage as a command: arguments, configuration, device, signals, exit status."""

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from stages.engine import distributed
from stages.engine.arguments import Command, read_arguments, read_configuration
from stages.engine.compiled import of_the_compiler
from stages.engine.config import Config, derive
from stages.engine.errors import Interrupted, UserError, is_out_of_memory, of_the_system, oneline
from stages.engine.lock import locked

SERVING = ("evaluator", "reader", "guide", "vae")  # stages whose exports serve an experiment's variants


@dataclass(frozen=True)
class Context:
    """What every stage is given."""

    config: Config
    device: torch.device
    dtype: torch.dtype  # of autocast regions
    arguments: argparse.Namespace
    began: float  # time.perf_counter() at the command's start
    held: ExitStack  # what is let go of when the command ends
    holding: set[Path] = field(default_factory=set)  # folders among it
    is_variant: bool = False  # of an experiment that trains several: no target of its own

    def autocast(self) -> AbstractContextManager:
        """Runs convolutions and matrix products in bfloat16 where the processor has it."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def folder(self, stage: str) -> Path:
        return Path(self.config.root) / self.config.name / stage

    def export(self, stage: str) -> Path:
        """Where the stage's export lies: in this experiment, or in the one that `uses` names.

        The `guide` of classifier guidance is another experiment's evaluator: the judge must be a stranger to it.
        """
        experiment = self.config.uses.get(stage, self.config.name)
        folder = "evaluator" if stage == "guide" else stage
        return Path(self.config.root) / experiment / folder / "export.safetensors"

    def derived(self, name: str, *overrides: str) -> "Context":
        """This experiment with changes, under another name: its pictures, its evaluators, reader and autoencoder serve.

        No model does: the variant's is its own. `overrides` as on the command line.
        """
        c = self.config
        uses = {stage: c.uses.get(stage, c.name) for stage in SERVING if stage != "guide" or "guide" in c.uses}
        folder = c.data.folder or str(self.folder("render"))
        settings = [f"name={name}", f"data.folder={folder}", f"uses={json.dumps(uses)}", *overrides]
        return replace(self, config=derive(c, settings), began=time.perf_counter(), is_variant=True)

    def hold(self, stage: str) -> Path:
        """The stage's folder, this command's alone until it ends. Raises UserError where another command has it."""
        folder = self.folder(stage)
        if folder not in self.holding:
            self.held.enter_context(locked(folder))
            self.holding.add(folder)
        return folder

    def make(self, words: str) -> str:
        """The Make command of this experiment, for a remedy: `make ldm CONFIG=configs/smoke.yaml`."""
        if self.is_variant:
            return "the same command" + (" with --fresh" if "FRESH" in words else "")
        return f"`make {words} CONFIG={self.arguments.config}`"


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise ValueError("only cpu and cuda are known here")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
            torch.cuda.set_device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"device {name!r} cannot be used ({oneline(error)[:80]}); device=cpu always can") from None
    return device


def has_fast_bfloat16(device: torch.device) -> bool:
    """True where bfloat16 products run in hardware: AVX512-BF16 or AMX on a CPU, Ampere or later on a GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def context_of(config: Config, arguments: argparse.Namespace, began: float, held: ExitStack) -> Context:
    """What a command gives its body: the device, the precision and torch's settings that the configuration asks for."""
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS starts
        torch.use_deterministic_algorithms(True)
    device = _device(config.device)
    fast = config.precision == "bfloat16" or (config.precision == "auto" and has_fast_bfloat16(device))
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    torch.backends.cudnn.deterministic = config.deterministic
    distributed.start(device)
    return Context(config, device, torch.bfloat16 if fast else torch.float32, arguments, began, held)


def _on_signal(number: int, frame: object) -> None:
    raise Interrupted(number)


def run_command(command: Command, body: Callable[[Context], None]) -> None:
    """Runs `body` as the command's main. Exit status: 0 done, 2 the user's mistake, 130 or 143 interrupted.

    stages/__init__.py has already answered SIGINT and SIGTERM, `--help` and mistakes while torch was being imported.
    """
    began = time.perf_counter()
    arguments = read_arguments(command)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)
    threading.excepthook = _of_thread
    try:
        config = read_configuration(command, arguments)
        with ExitStack() as held:
            body(context_of(config, arguments, began, held))
        distributed.stop()
    except UserError as error:
        _end(f"error: {error}", 2)
    except Interrupted as stop:
        without = " without --fresh" if getattr(arguments, "fresh", False) else ""
        _end(f"interrupted: {stop}; the same command{without} goes on from here", stop.exit_status)
    except (RuntimeError, MemoryError) as error:
        if _is_lost_connection(error):
            _end(f"error: another process has ended ({oneline(error)[:100]}); its own message says why", 2)
        if not is_out_of_memory(error):
            if (of_compiler := of_the_compiler(error)) is None:
                raise
            _end(f"error: {of_compiler}", 2)
        _end(f"error: out of memory ({oneline(error)[:100]}); lower the stage's batch, such as ldm.batch=32", 2)
    except OSError as error:
        _end(f"error: {of_the_system(error)}", 2)


def _is_lost_connection(error: Exception) -> bool:
    """What a collective raises where another process has ended."""
    text = str(error).lower()
    return distributed.world_size() > 1 and any(word in text for word in ("connection", "gloo", "nccl"))


def _of_thread(arguments: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer meets a full disk in a thread of its own: the main one meets it too, and says so."""
    if not isinstance(arguments.exc_value, OSError):
        threading.__excepthook__(arguments)


def _end(message: str, status: int) -> None:
    if not distributed.is_main():
        time.sleep(2)  # where the main process fails too it speaks for all, and torchrun ends this one
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    if distributed.world_size() > 1:
        os._exit(status)  # another process may wait in a collective: leave, and torchrun ends the rest
    sys.exit(status)
