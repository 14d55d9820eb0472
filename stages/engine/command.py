"""A stage as a command: arguments, configuration, device, signals, exit status."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.engine import distributed
from stages.engine.config import Config, load
from stages.engine.errors import Interrupted, UserError, oneline


@dataclass(frozen=True)
class Context:
    """What every stage is given."""

    config: Config
    device: torch.device
    dtype: torch.dtype  # of autocast regions
    arguments: argparse.Namespace

    def autocast(self) -> AbstractContextManager:
        """Runs convolutions and matrix products in bfloat16 where the processor has it."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def folder(self, stage: str) -> Path:
        return Path(self.config.root) / self.config.name / stage

    def export(self, stage: str) -> Path:
        return self.folder(stage) / "export.safetensors"


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
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


def _context(config: Config, arguments: argparse.Namespace) -> Context:
    device = _device(config.device)
    fast = config.precision == "bfloat16" or (config.precision == "auto" and has_fast_bfloat16(device))
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, the gradient penalty's convolutions included
    torch.backends.cudnn.deterministic = True
    distributed.start(device)
    return Context(config, device, torch.bfloat16 if fast else torch.float32, arguments)


def _on_signal(number: int, frame: object) -> None:
    raise Interrupted(number)


def command(description: str, body: Callable[[Context], None], add_arguments: Callable = lambda parser: None) -> None:
    """Runs `body` as the command's main. Exit status: 0 done, 2 the user's mistake, 130 or 143 interrupted."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="Overrides come last: section.key=value, such as ldm.steps=2000 or root=/tmp/out. "
        "Exit status: 0 done, 2 a mistake in what was asked (one line says which), 130 or 143 interrupted.",
    )
    parser.add_argument(
        "--config", default="configs/demo.yaml", metavar="FILE", help="the experiment (default: %(default)s)"
    )
    add_arguments(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="replace a value of the configuration"
    )
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)
    try:
        body(_context(load(arguments.config, arguments.overrides), arguments))
        distributed.stop()
    except UserError as error:
        _end(f"error: {error}", 2)
    except Interrupted as stop:
        _end(f"interrupted: {stop}; the same command goes on from here", stop.exit_status)
    except (torch.OutOfMemoryError, MemoryError) as error:
        _end(f"error: out of memory ({oneline(error)[:100]}); lower the stage's batch, such as ldm.batch=32", 2)
    except OSError as error:
        _end(f"error: {oneline(error)}", 2)


def _end(message: str, status: int) -> None:
    if distributed.is_main():
        print(message, file=sys.stderr, flush=True)
    sys.stderr.flush()
    sys.stdout.flush()
    if distributed.world_size() > 1:
        os._exit(status)  # another process may wait in a collective: leave, and torchrun ends the rest
    sys.exit(status)


def add_fresh(parser: argparse.ArgumentParser) -> None:
    """The flag of every stage that keeps a run folder."""
    parser.add_argument(
        "--fresh", action="store_true", help="start anew; an old run is moved aside, nothing is deleted"
    )
