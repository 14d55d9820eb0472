"""Checkpoints hold all that a run needs to resume: written atomically, checked when read, never executed."""

import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path

import torch

from stages.engine import distributed
from stages.engine.errors import UserError, is_out_of_memory, of_the_system, oneline
from stages.engine.files import write_atomically

MAGIC = b"ICLEVR-CKPT-1\n"
NAME = re.compile(r"step-(\d{8,})\.ckpt")


def step_of(checkpoint: Path) -> int:
    """Returns the step in a checkpoint's name."""
    return int(checkpoint.stem.removeprefix("step-"))


def checkpoints_in(folder: Path) -> list[Path]:
    """Returns a run's checkpoints in the order of their steps. A copy under another name is none."""
    return sorted(filter(lambda path: NAME.fullmatch(path.name), folder.glob("step-*.ckpt")), key=step_of)


class Checkpoints:
    """The numbered checkpoints of one run, `step-00001000.ckpt`: a checksum, then a `torch.save` payload."""

    def __init__(self, folder: Path, keep: int, warn: Callable[[str], None]):
        self.folder, self.keep, self.warn = folder, keep, warn

    def save(self, step: int, state: dict) -> Path:
        """Writes the checkpoint of `step`, then deletes all but the last `keep`."""
        buffer = io.BytesIO()
        torch.save({"step": step, **state}, buffer)
        payload = buffer.getbuffer()
        path = self.folder / f"step-{step:08d}.ckpt"
        write_atomically(path, MAGIC, hashlib.sha256(payload).digest(), payload)
        for old in checkpoints_in(self.folder)[: -self.keep]:
            old.unlink()
        return path

    def load_latest(self) -> dict | None:
        """Loads the state of the newest readable checkpoint on the CPU, or returns None if there is no checkpoint.

        Damaged newer ones are renamed with a warning, so that `keep` does not count them. If none can be read, or the
        system refuses to read one that may be intact, nothing changes and UserError is raised.
        """
        passed: list[tuple[Path, str]] = []
        for path in reversed(checkpoints_in(self.folder)):
            try:
                state = self._read(path)
            except FileNotFoundError:  # it was damaged: the main process has already renamed it
                continue
            except OSError as error:
                raise of_the_system(error, f"cannot read {path}") from None
            except ValueError as error:
                passed.append((path, f"damaged ({oneline(error)})"))
                continue
            except Exception as error:  # weights_only refuses with pickle.UnpicklingError
                if is_out_of_memory(error):
                    raise
                passed.append((path, f"refused ({oneline(error)})"))
                continue
            for bad, fault in passed:
                self.warn(f"warning: {bad} is {fault}; using the checkpoint before it")
                if distributed.is_main():
                    bad.rename(bad.with_suffix(".damaged"))
            return state
        if passed:
            path, fault = passed[0]
            raise UserError(f"{path} is {fault}, and no earlier one can be read; move the folder aside or use --fresh")
        return None

    @staticmethod
    def _read(path: Path) -> dict:
        content = path.read_bytes()
        start = len(MAGIC) + 32
        if not content.startswith(MAGIC):
            raise ValueError("not a checkpoint of this project")
        if hashlib.sha256(content[start:]).digest() != content[len(MAGIC) : start]:
            raise ValueError("checksum differs")
        return torch.load(io.BytesIO(content[start:]), map_location="cpu", weights_only=True)
