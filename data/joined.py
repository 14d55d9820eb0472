"""Several tensors read as one: the pictures of several packs, or the parts of a set, each left in its file."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class Joined:
    """Tensors (n_i, ...) of one type end to end, indexed like one tensor (n, ...) without a copy of the whole.

    `rows` (k,): only these rows, in this order; n is then k.
    """

    def __init__(self, parts: Sequence[Tensor], rows: Tensor | None = None):
        self.parts, self.rows = list(parts), rows
        self.ends = torch.tensor([len(part) for part in parts]).cumsum(0)

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.rows is None else len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    @property
    def nbytes(self) -> int:
        return len(self) * self.parts[0][:1].nbytes

    def __getitem__(self, chosen: Tensor | slice) -> Tensor:
        """Returns the chosen rows: a view for a slice within one part, else a copy."""
        if isinstance(chosen, slice):
            first, last, step = chosen.indices(len(self))
            if self.rows is None and step == 1 and (view := self._within_one(first, last)) is not None:
                return view
            chosen = torch.arange(first, max(first, last), step)
        rows = chosen if self.rows is None else self.rows[chosen].long()
        if len(self.parts) == 1:
            return self.parts[0][rows]
        count = int(self.ends[-1])
        if len(rows) and not -count <= int(rows.min()) <= int(rows.max()) < count:
            raise IndexError(f"a row outside of 0 to {count - 1}")
        rows = rows % count
        which = torch.searchsorted(self.ends, rows, right=True)
        found = self.parts[0].new_empty(len(rows), *self.shape[1:])
        for part in which.unique().tolist():
            (at,) = (which == part).nonzero(as_tuple=True)
            found[at] = self.parts[part][rows[at] - (self.ends[part] - len(self.parts[part]))]
        return found

    def _within_one(self, first: int, last: int) -> Tensor | None:
        part = min(int(torch.searchsorted(self.ends, first, right=True)), len(self.parts) - 1)
        before = int(self.ends[part]) - len(self.parts[part])
        return self.parts[part][first - before : max(first, last) - before] if last <= self.ends[part] else None

    def split(self, size: int) -> Iterator[Tensor]:
        """Yields rows in order, `size` at a time, the last time fewer."""
        for first in range(0, len(self), size):
            yield self[first : first + size]

    def to(self, device: torch.device) -> Tensor:
        """Returns all rows as one tensor on the device."""
        whole = torch.empty(self.shape, dtype=self.dtype, device=device)
        for first, part in enumerate(self.split(4096)):
            whole[4096 * first : 4096 * first + len(part)].copy_(part)
        return whole


Rows = Tensor | Joined  # what may be as large as a disk: rows that are read by index or in order
