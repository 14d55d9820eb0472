"""A prior of layouts: places of objects in training pictures, for conditions without places."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.condition import Condition

PREFIX = "layouts."  # of the tensors in an export
CHUNK = 2**20  # pictures at once: a set may be as large as memory
CANDIDATES = 16384  # layouts drawn when no training layout fits unchanged


def evenly(count: int, most: int) -> Tensor:
    """Returns at most `most` of {0, ..., count - 1}, spread evenly from first to last: (n,) int64."""
    exact = torch.float64 if count > 2**24 else torch.float32  # which holds no larger integers
    return torch.linspace(0, count - 1, min(most, count), dtype=exact).round().long()


@dataclass(frozen=True)
class LayoutPrior:
    """Layouts of training pictures by their number of objects: {n: (count, n, 2), in list order}. May be empty."""

    layouts: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, conditions: Condition, most: int = 1024) -> "LayoutPrior":
        """Takes up to `most` layouts per number of objects, spread evenly over the rows whose places are all known."""
        counts = torch.zeros(len(conditions), dtype=torch.int16, device=conditions.device)
        for first in range(0, len(conditions), CHUNK):  # the number of objects, 0 where a place is unknown
            part = conditions[first : first + CHUNK]
            counts[first : first + CHUNK] = part.present.sum(1) * part.wholly_placed
        numbers = {number for part in counts.split(CHUNK) for number in part.unique().tolist()}
        layouts = {}
        for number in sorted(numbers - {0}):
            chosen = _spread(counts, number, most)
            layouts[number] = conditions.places[chosen, :number].float().cpu()
        return cls(layouts)

    @classmethod
    def split_from(cls, tensors: dict[str, Tensor]) -> tuple["LayoutPrior", dict[str, Tensor]]:
        """Splits an export's tensors into the prior and the other tensors."""
        layouts = {int(k.removeprefix(PREFIX)): t for k, t in tensors.items() if k.startswith(PREFIX)}
        return cls(layouts), {k: t for k, t in tensors.items() if not k.startswith(PREFIX)}

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{PREFIX}{number}": places for number, places in self.layouts.items()}

    def apart(self, distance: float) -> "LayoutPrior":
        """Keeps the layouts whose objects are at least `distance` (sides of the picture) apart.

        Such objects rarely hide one another. If a number of objects has no such layout, its widest one is kept.
        """
        if distance == 0:
            return self
        kept = {}
        for number, places in self.layouts.items():
            smallest = _gaps(places).amin(1) if number > 1 else torch.full((len(places),), torch.inf)
            kept[number] = places[smallest >= min(distance, smallest.max().item())]
        return LayoutPrior(kept)

    def nearest(self) -> float:
        """Returns the smallest distance of two objects: the first percentile over training pairs, 0 without pairs."""
        gaps = [_gaps(places).flatten() for number, places in self.layouts.items() if number > 1]
        return torch.cat(gaps).quantile(0.01).item() if gaps else 0.0

    def complete(self, condition: Condition, generators: Sequence[torch.Generator]) -> Condition:
        """Gives every object a place: those without one get it from the row's generator.

        A row without places, with as many objects as training pictures have, gets one of their layouts. Otherwise
        (some places given, more objects) candidates are drawn slot by slot from the layouts, and the first whose
        objects keep the smallest distance of training is taken, or else the one that comes closest to it.
        """
        if not self.layouts:
            return condition
        places, device = condition.places.cpu().clone(), condition.device
        present, placed = condition.present.cpu(), condition.placed.cpu()
        for row, generator in enumerate(generators):
            slots, fixed = int(present[row].sum()), placed[row]
            if slots == int(fixed.sum()):
                continue
            known = self.layouts.get(slots)
            if known is not None and not fixed.any():
                places[row, :slots] = known[torch.randint(len(known), (), generator=generator)]
            else:
                places[row, :slots] = self._drawn(places[row, :slots], fixed[:slots], generator)
        return condition.with_places(places.to(device))

    def _drawn(self, places: Tensor, fixed: Tensor, generator: torch.Generator) -> Tensor:
        """Keeps the `fixed` (n,) of places (n, 2) and returns them with the best of many candidates for the others."""
        slots = len(places)
        source = self.layouts[min(self.layouts, key=lambda number: (abs(number - slots), -number))]
        drawn = torch.randint(len(source), (CANDIDATES, slots), generator=generator)
        columns = torch.arange(slots).clamp(max=source.shape[1] - 1)
        candidates = torch.where(fixed[:, None], places, source[drawn, columns])
        if slots == 1:
            return candidates[0]
        first, second = _pairs(slots)
        # the distance of two given objects is fixed, so it does not count
        closest = _gaps(candidates)[:, ~(fixed[first] & fixed[second])].amin(1)
        enough = closest >= (self.nearest() or torch.inf)  # no training picture shows a pair: as far as possible
        return candidates[enough.int().argmax() if enough.any() else closest.argmax()]


def smallest_gaps(condition: Condition) -> Tensor:
    """Returns the smallest distance of two objects in each row: (b,), in sides of the picture.

    It is infinite with fewer than two objects, and -1 where the place of one of several is unknown.
    """
    if condition.slots < 2:
        return torch.full((len(condition),), torch.inf, device=condition.device)
    first, second = _pairs(condition.slots).to(condition.device)
    present, placed = condition.present, condition.placed
    both, known = present[:, first] & present[:, second], placed[:, first] & placed[:, second]
    gaps = _gaps(condition.places.float()).masked_fill(~both, torch.inf)
    return gaps.masked_fill(both & ~known, -1.0).amin(1)


def _spread(counts: Tensor, number: int, most: int) -> Tensor:
    """Returns at most `most` of the rows where counts (n,) is `number`, spread evenly, without a list of them all."""
    ranks = evenly(sum(int((part == number).sum()) for part in counts.split(CHUNK)), most)
    found, before = [], 0
    for place, part in enumerate(counts.split(CHUNK)):
        (rows,) = (part == number).nonzero(as_tuple=True)
        wanted = ranks[(ranks >= before) & (ranks < before + len(rows))] - before
        found.append(rows[wanted.to(rows.device)] + place * CHUNK)
        before += len(rows)
    return torch.cat(found)


def _pairs(slots: int) -> Tensor:
    """Returns the slots of all pairs: (2, n (n - 1) / 2)."""
    return torch.triu_indices(slots, slots, 1)


def _gaps(places: Tensor) -> Tensor:
    """Returns the distances of all `_pairs`: (count, n, 2) -> (count, n (n - 1) / 2)."""
    first, second = _pairs(places.shape[1])
    return (places[:, first] - places[:, second]).norm(dim=-1)
