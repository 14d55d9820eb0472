"""Reports a run's progress: metrics.jsonl, TensorBoard, preview pictures, and a progress bar or plain lines."""

import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from stages.engine import distributed
from stages.engine.errors import of_the_system
from stages.engine.files import from_json, write_atomically
from stages.engine.pictures import png
from stages.engine.sums import Sums, stacked

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def say(text: str) -> None:
    """Prints one line for the user, from the main process only, above any progress bar."""
    if distributed.is_main():
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()


def progress(items, title: str, total: int | None = None):
    """Iterates with a progress bar on a terminal; elsewhere prints a line at the start and at each quarter."""
    if not distributed.is_main():
        yield from items
        return
    if sys.stderr.isatty():
        yield from tqdm(items, title, total=total)
        return
    total = len(items) if total is None else total
    say(f"{title} ...")
    marks = {-(-total * quarter // 4) for quarter in (1, 2, 3)}  # rounded up: a quarter is said once it is done
    for done, item in enumerate(items, 1):
        yield item
        if done in marks:
            say(f"{title}: {100 * done // total} %")


def read_metrics(path: Path) -> list[dict]:
    """Returns the lines of a metrics.jsonl, or none if it does not exist. Skips a line that a full disk cut off."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError):
            found.append(from_json(line))
    return [line for line in found if isinstance(line, dict)]


Metric = Tensor | tuple[Tensor, Tensor]  # of a step: a scalar, or (sum, count) where the count varies


class MetricsLog:
    """Writes the means of the steps' metrics over each log interval.

    Metrics are summed on the device and read once per interval; the sums not yet written are part of the
    checkpoint, so a resumed run writes the lines an uninterrupted one would. On resume, lines of steps after the
    checkpoint are removed.
    """

    def __init__(self, folder: Path, every: int, steps: int, batch: int, title: str):
        self.folder, self.every, self.batch, self.title = folder, every, batch, title
        self._sums, self._parts = Sums(), Sums()  # `_parts`: the counts of metrics that are (sum, count)
        self._steps_of: dict[str, int] = {}  # the counts of the others: a metric may begin within an interval
        self._since, self._since_step = time.perf_counter(), 0
        self._steps = steps
        self._bar: tqdm | None = None
        self._board: SummaryWriter | None = None

    @property
    def path(self) -> Path:
        return self.folder / "metrics.jsonl"

    def begin(self, step: int) -> None:
        """Opens the files at `step` and removes what an interrupted run wrote after it."""
        self._since, self._since_step = time.perf_counter(), step
        if not distributed.is_main():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            lines = self.path.read_text(errors="replace").splitlines()
            kept = "".join(line + "\n" for line in lines if _step_of(line) <= step)
            write_atomically(self.path, kept.encode())
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import, which `--help` avoids

        self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)
        interactive = sys.stderr.isatty()
        self._bar = tqdm(
            total=self._steps, initial=step, desc=self.title, unit="step", disable=not interactive, dynamic_ncols=True
        )

    def add(self, metrics: Mapping[str, Metric]) -> None:
        """Adds one step's metrics without waiting for the device."""
        counts = {name: value[1] for name, value in metrics.items() if isinstance(value, tuple)}
        self._parts.add(counts)
        self._sums.add({name: value[0] if isinstance(value, tuple) else value for name, value in metrics.items()})
        for name in metrics.keys() - counts.keys():
            self._steps_of[name] = self._steps_of.get(name, 0) + 1
        if self._bar is not None:
            self._bar.update()

    def flush(self, step: int) -> None:
        """Writes the means since the last flush as one line for `step`."""
        found, of_parts = self._sums.by_name(), self._parts.by_name()
        values = {}
        if found:
            sums = stacked(found.values())
            every = {name: torch.tensor(float(n), device=sums.device) for name, n in self._steps_of.items()} | of_parts
            counts = stacked(every[name] for name in found)
            sums, counts = distributed.average(torch.stack([sums, counts]))
            means = zip(found, (sums / counts).tolist(), counts.tolist(), strict=True)
            values = {name: mean for name, mean, count in means if count > 0}  # leaves out metrics that never occurred
        now = time.perf_counter()
        rate = (step - self._since_step) / max(now - self._since, 1e-9)
        self._since, self._since_step = now, step
        self._sums, self._parts, self._steps_of = Sums(), Sums(), {}
        self.write(step, values, rate)

    def write(self, step: int, values: dict[str, float], rate: float | None = None, **clock: float) -> None:
        """Appends one line of metrics; rate and clock depend on the machine and are not part of the run's result."""
        if not distributed.is_main():
            return
        assert self._board is not None, "begin was not called"
        line = {"step": step, **values}
        if rate is not None:
            line["images_per_second"] = round(rate * self.batch, 2)
        line |= {name: round(value, 1) for name, value in clock.items()}
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:
            raise of_the_system(error, f"cannot write to {self.folder}") from None
        self._speak(step, values, rate)

    def _speak(self, step: int, values: dict[str, float], rate: float | None) -> None:
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix_str(text[:100])
        else:
            left = f"  {_clock((self._steps - step) / rate)} left" if rate else ""
            speed = f"  {rate:.2f} step/s" if rate else ""
            say(f"{self.title} {step}/{self._steps}  {text}{speed}{left}")

    def picture(self, name: str, step: int, grid: Tensor) -> None:
        """Saves an image, (3, h, w) in [0, 1], as previews/<name>-<step>.png and to TensorBoard."""
        if not distributed.is_main():
            return
        assert self._board is not None, "begin was not called"
        write_atomically(self.folder / "previews" / f"{name}-{step:08d}.png", png(grid))
        self._board.add_image(name, grid, step)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._board is not None:
            self._board.close()

    def state_dict(self) -> dict:
        counts = {name: count.cpu().clone() for name, count in self._parts.by_name().items()}
        return {
            "sums": {name: total.cpu().clone() for name, total in self._sums.by_name().items()},
            "counts": self._steps_of | counts,
        }

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        counts = state["counts"]
        self._sums.add({name: total.to(device) for name, total in state["sums"].items()})
        self._parts.add({name: n.to(device) for name, n in counts.items() if isinstance(n, Tensor)})
        self._steps_of = {name: n for name, n in counts.items() if not isinstance(n, Tensor)}


def _step_of(line: str) -> float:
    try:
        return from_json(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
