"""Runs a stage as a command: arguments, configuration, device, signals, exit status."""

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
from typing import TypeVar

import torch
from torch import nn

from stages.engine import distributed
from stages.engine.arguments import Command, make_command, read_arguments, read_configuration
from stages.engine.compiled import of_the_compiler
from stages.engine.config import Config, derive
from stages.engine.errors import Interrupted, UserError, is_out_of_memory, of_the_system, oneline
from stages.engine.files import remove_temporary
from stages.engine.learnable import refuse_unlearnable, starts_from_a_picture
from stages.engine.lock import locked
from stages.engine.rules import ignored
from stages.engine.terminal import ending_signals, forgiving_output, ignore_signals

Network = TypeVar("Network", bound=nn.Module)
SERVING = ("evaluator", "reader", "guide", "vae")  # stages whose exports an experiment's variants reuse
JUDGES = ("judge1", "judge2")  # evaluators of other seeds, by which nothing is chosen


@dataclass(frozen=True)
class Context:
    """Holds what every stage is given."""

    config: Config
    device: torch.device
    dtype: torch.dtype  # of autocast regions
    arguments: argparse.Namespace
    began: float  # time.perf_counter() at the command's start
    held: ExitStack  # what is released when the command ends
    holding: set[Path] = field(default_factory=set)  # the stage folders that are locked
    is_variant: bool = False  # one of the trainings of an experiment: no Make target runs it alone

    def autocast(self) -> AbstractContextManager:
        """Runs convolutions and matrix products in bfloat16 where the processor has it."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def on_device(self, network: Network) -> Network:
        """Moves a network to the device, with convolutions' weights in the order of channels_last."""
        return network.to(self.device).to(memory_format=torch.channels_last)

    def folder(self, stage: str) -> Path:
        return Path(self.config.root) / self.config.name / stage

    def experiment_of(self, stage: str) -> str:
        """Returns the experiment whose export is used for the stage: this one, or one that `uses` names.

        Each of JUDGES is an experiment of its own beside the one whose evaluator judges.
        """
        if stage in JUDGES:
            return f"{self.experiment_of('evaluator')}-{stage}"
        return self.config.uses.get(stage, self.config.name)

    def export(self, stage: str) -> Path:
        """Returns the path of the stage's export.

        JUDGES and the `guide` of classifier guidance are evaluators of other experiments, because they must not be the
        judge.
        """
        folder = "evaluator" if stage in ("guide", *JUDGES) else stage
        return Path(self.config.root) / self.experiment_of(stage) / folder / "export.safetensors"

    def derived(self, name: str, *overrides: str) -> "Context":
        """Returns a variant: this experiment with changes, under another name. `overrides` as on the command line.

        It reuses the pictures, evaluators, reader and autoencoder, but no model: a variant trains that itself.
        """
        c = self.config
        uses = {stage: c.uses.get(stage, c.name) for stage in SERVING if stage != "guide" or "guide" in c.uses}
        folder = c.data.folder or str(self.folder("render"))
        folder = json.dumps(folder) if isinstance(folder, tuple) else folder
        settings = [f"name={name}", f"data.folder={folder}", f"uses={json.dumps(uses)}", *overrides]
        return replace(self, config=derive(c, settings), began=time.perf_counter(), is_variant=True)

    def hold(self, stage: str) -> Path:
        """Locks the stage's folder until this command ends and returns it. Raises UserError if another one holds it.

        Temporary files that a killed command left there are removed.
        """
        folder = self.folder(stage)
        if folder not in self.holding:
            self.held.enter_context(locked(folder))
            self.holding.add(folder)
            if distributed.is_main():
                for part in folder.glob("*/"):  # previews/, pairs/
                    remove_temporary(part)
        return folder

    def make(self, words: str) -> str:
        """Returns a Make command of this experiment for an error message: `make ldm CONFIG=configs/smoke.yaml`."""
        if self.is_variant:
            return "the same command" + (" with --fresh" if "FRESH" in words else "")
        return f"`{make_command(words, self.arguments.config, getattr(self.arguments, 'overrides', ()))}`"


def device_of(name: str) -> torch.device:
    """Returns the device that `device` names: auto, cpu, cuda or cuda:1. Raises UserError if it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise ValueError("only cpu and cuda are supported")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"device {name!r} cannot be used ({oneline(error)[:80]}); device=cpu always works") from None
    return device


def has_fast_bfloat16(device: torch.device) -> bool:
    """Returns True if the hardware multiplies bfloat16: AVX512-BF16 or AMX on a CPU, Ampere or later on a GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def precision_of(config: Config, device: torch.device) -> torch.dtype:
    """Returns the type of autocast regions that the configuration asks for."""
    fast = config.precision == "bfloat16" or (config.precision == "auto" and has_fast_bfloat16(device))
    return torch.bfloat16 if fast else torch.float32


def context_of(config: Config, arguments: argparse.Namespace, began: float, held: ExitStack) -> Context:
    """Makes a command's context and sets up the device, precision and torch settings that the configuration names."""
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS starts
        torch.use_deterministic_algorithms(True)
    device = device_of(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    torch.backends.cudnn.deterministic = config.deterministic
    distributed.start(device)
    return Context(config, device, precision_of(config, device), arguments, began, held)


def _on_signal(number: int, frame: object) -> None:
    ignore_signals()
    raise Interrupted(number)


def run_command(command: Command, body: Callable[[Context], None]) -> None:
    """Runs `body` as the command's main. Exit status: 0 done, 2 user error, 129, 130 or 143 interrupted.

    While torch is imported, stages/__init__.py already handles SIGINT, SIGTERM, `--help` and mistakes.
    """
    began = time.perf_counter()
    arguments = read_arguments(command)
    for number in ending_signals():
        signal.signal(number, _on_signal)
    threading.excepthook = _of_thread
    with forgiving_output():
        _run(command, body, arguments, began)


def _run(command: Command, body: Callable[[Context], None], arguments: argparse.Namespace, began: float) -> None:
    try:
        config = read_configuration(command, arguments)
        if arguments.check:
            return
        refuse_unlearnable(config)
        if distributed.is_main():
            for words in [*ignored(config), *starts_from_a_picture(config)]:
                print(f"warning: {words}", file=sys.stderr, flush=True)
        with ExitStack() as held:
            body(context_of(config, arguments, began, held))
        distributed.stop()
    except UserError as error:
        _end(f"error: {error}", 2)
    except Interrupted as stop:
        without = " without --fresh" if getattr(arguments, "fresh", False) else ""
        _end(f"interrupted: {stop}; run the same command{without} to resume", stop.exit_status)
    except (RuntimeError, MemoryError) as error:
        if _is_lost_connection(error):
            _end(f"error: another process has ended ({oneline(error)[:100]}); its message says why", 2)
        if not is_out_of_memory(error):
            if (of_compiler := of_the_compiler(error)) is None:
                raise
            _end(f"error: {of_compiler}", 2)
        words = "lower the stage's batch, such as ldm.batch=32, or work through it in parts, such as ldm.accumulate=4"
        _end(f"error: out of memory ({oneline(error)[:100]}); {words}", 2)
    except OSError as error:
        _end(f"error: {of_the_system(error)}", 2)


def _is_lost_connection(error: Exception) -> bool:
    """Returns True for what a collective operation raises when another process has ended."""
    text = str(error).lower()
    return distributed.world_size() > 1 and any(word in text for word in ("connection", "gloo", "nccl"))


def _of_thread(arguments: threading.ExceptHookArgs) -> None:
    """Hides a thread's OSError: on a full disk TensorBoard's writer thread fails, and the main thread reports it."""
    if not isinstance(arguments.exc_value, OSError):
        threading.__excepthook__(arguments)


def _end(message: str, status: int) -> None:
    ignore_signals()
    if not distributed.is_main():
        time.sleep(2)  # if the main process fails too, it reports for all, and torchrun ends this one
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    if distributed.world_size() > 1:
        os._exit(status)  # another process may be waiting in a collective: exit, and torchrun ends the rest
    sys.exit(status)
