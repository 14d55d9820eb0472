"""What several test files ask of a stage's folder and of what it said."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.engine.export import load_export
from stages.engine.lock import locked
from stages.engine.optim import Optimizer


@contextmanager
def of_all_workers(tmp_path_factory, name: str) -> Iterator[Path]:
    """Yields a path that all of pytest's workers share, to one of them at a time. The first finds nothing there."""
    own = tmp_path_factory.getbasetemp()
    path = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    with locked(path, wait=True):
        yield path


def assert_one_line(status, said, *parts):
    assert status == 2, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert "Traceback" not in said
    for part in parts:
        assert part in errors[0], errors[0]


class Hostile:
    """An object whose unpickling makes a folder, so that a test sees whether a file's pickle was run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def lines(folder):
    """Returns metrics.jsonl without rates and times, which depend on the machine."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "seconds")} for line in found]


def digest(folder):
    return load_export(folder / "export.safetensors", "")[1]["sha256"]


@contextmanager
def interrupted_at(step, monkeypatch, number=signal.SIGINT):
    """Context manager: a run receives that signal, once, while it takes that step."""
    take, told = Optimizer.take, []

    def interrupted(self, now):
        if now == step and not told:  # a task may have two optimizers, and a second signal may end it at once
            told.append(number)
            signal.raise_signal(number)
        return take(self, now)

    with monkeypatch.context() as patch:
        patch.setattr(Optimizer, "take", interrupted)
        yield
