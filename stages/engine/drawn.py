"""Says which pictures an epoch contains, and how often."""

from functools import cached_property

import torch
from torch import Tensor

from models.condition import Condition

CHUNK = 2**20  # pictures whose labels are worked on at once


class Drawn:
    """An epoch's pictures: each once, or with `by-labels` once per label. It maps numbers of draws to pictures.

    Accuracy counts labels: with `by-labels` a picture of three objects counts as much as three pictures of one.
    """

    def __init__(self, conditions: Condition, how: str, only: Tensor | None = None):
        """`only` (k,): draws among these pictures alone."""
        self._size, self._only = len(conditions) if only is None else len(only), only
        self._ends: Tensor | None = None
        if how == "by-labels":
            kind = torch.int32 if conditions.objects.numel() < 2**31 else torch.int64
            self._ends = torch.empty(self._size, dtype=kind, device=conditions.device)
            for part, counts in enumerate(self._ends.split(CHUNK)):
                rows = slice(part * CHUNK, (part + 1) * CHUNK)
                counts.copy_(conditions.objects[rows if only is None else only[rows]].ge(0).sum(1))
            self._ends.cumsum_(0)
            self._size = int(self._ends[-1])

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, draws: Tensor) -> Tensor:
        """Returns the pictures (b,) of draws (b,) from {0, ..., len(self) - 1}."""
        return _looked_up(draws, self._ends, self._only)

    @cached_property
    def _hosts(self) -> tuple[Tensor | None, Tensor | None]:
        return (
            self._ends if self._ends is None else self._ends.cpu(),
            self._only if self._only is None else self._only.cpu(),
        )

    def on_host(self, draws: Tensor) -> Tensor:
        """Returns the same for draws on the host, without waiting for the device."""
        return _looked_up(draws, *self._hosts)


def _looked_up(draws: Tensor, ends: Tensor | None, only: Tensor | None) -> Tensor:
    if ends is not None:
        draws = torch.searchsorted(ends, draws.to(ends.dtype), right=True)
    return draws if only is None else only[draws].long()
