"""Brings batches of a set to the device; from a set that stays on disk a thread reads the next ones ahead.

Which rows come next is known: an epoch's order is a function of seed and step. The bits do not depend on when rows are
read.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from data.joined import Rows
from stages.engine.draws import Coming

AHEAD = 3  # batches that are read before they are asked for


def memory() -> int:
    """Returns the machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Ahead:
    """Reads batches by their number in a thread. `read` maps indices (b,) on the host to rows (b, ...)."""

    def __init__(self, read: Callable[[Tensor], Tensor]):
        self._read, self._thread = read, ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._begun: dict[tuple, Future[Tensor]] = {}

    def _rows_of(self, batch: Coming) -> Tensor:
        return self._read(batch.index())

    def take(self, coming: Coming) -> Tensor:
        """Returns the rows of a batch, which has usually been read already, and starts to read the next ones."""
        wanted = [coming.after(more) for more in range(AHEAD + 1)]
        keep = {batch.key for batch in wanted}
        for key in self._begun.keys() - keep:  # of another run, or not asked for
            self._begun.pop(key).cancel()
        for batch in wanted:
            if batch.key not in self._begun:
                self._begun[batch.key] = self._thread.submit(self._rows_of, batch)
        return self._begun.pop(coming.key).result()


class Batches:
    """The rows (n, ...) of a set by index, on the device, in the type in which they are stored."""

    def __init__(self, rows: Rows, device: torch.device):
        self.rows, self.device = rows, device
        on_disk = rows.device != device or (device.type == "cpu" and rows.nbytes > memory() / 2)
        self.ahead = Ahead(self._on_host) if on_disk else None

    def _on_host(self, index: Tensor) -> Tensor:
        found = self.rows[index]
        return found.pin_memory() if self.device.type == "cuda" else found

    def __call__(self, index: Tensor, coming: Coming | None = None) -> Tensor:
        """Returns rows (b, ...) of index (b,). `coming`: what it was drawn by, so that more can be read ahead."""
        if self.ahead is None or coming is None:
            return self.rows[index.to(self.rows.device)].to(self.device)
        return self.ahead.take(coming).to(self.device, non_blocking=True)
