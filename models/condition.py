"""A condition is what a picture is asked to show: objects in order and, where known, their places and turns."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

ABSENT = -1  # fills rows of `objects` that are shorter than the longest, and unknown places
OBJECT = 0.1  # of the picture's side: how far an object extends from its place


@dataclass(frozen=True)
class Condition:
    """A batch of conditions: every network, sampler and task takes this one type.

    `objects` (b, m) int64: indices into the vocabulary in the order of the label list, then -1. `places` (b, m, 2)
    float32: x to the right and y downwards in [0, 1] of the picture, -1 where unknown. `turns` (b, m) float32: how far
    an object is turned about the vertical, in [0, 1) of a full turn, -1 where unknown: anticlockwise seen from above, 0
    where its own x axis points in the camera's direction. `classes`: the size of the vocabulary. A row may have places
    and turns for all, some or none of its objects. A whole set may keep `objects` in a smaller type: rows that are
    taken from it are int64.
    """

    objects: Tensor
    places: Tensor
    turns: Tensor
    classes: int

    @classmethod
    def of_lists(
        cls,
        objects: Sequence[Sequence[int]],
        classes: int,
        places: Sequence[Sequence[tuple[float, float] | None]] | None = None,
    ) -> "Condition":
        """Converts lists of indices, and of places or None, one per row. Without `places` none is known."""
        most = max(1, *(len(row) for row in objects)) if len(objects) else 1
        indices = torch.full((len(objects), most), ABSENT)
        where = torch.full((len(objects), most, 2), float(ABSENT))
        for i, row in enumerate(objects):
            indices[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
            for j, place in enumerate(places[i] if places is not None else []):
                if place is not None:
                    where[i, j] = torch.tensor(place)
        return cls(indices, where, unknown_turns(indices), classes)

    @classmethod
    def of_labels(cls, labels: Tensor) -> "Condition":
        """Converts multi-hot labels (b, k) to objects in the order of the vocabulary, without places."""
        return cls.of_lists([row.nonzero().flatten().tolist() for row in labels], labels.shape[1]).to(labels.device)

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, rows: Tensor | slice | list[int]) -> "Condition":
        """Returns the chosen rows, indexed like a tensor; the number of slots m stays the same."""
        return replace(self, objects=self.objects[rows].long(), places=self.places[rows], turns=self.turns[rows])

    @property
    def slots(self) -> int:
        """The number of slots m, known without waiting for the device."""
        return self.objects.shape[1]

    @property
    def device(self) -> torch.device:
        return self.objects.device

    @property
    def present(self) -> Tensor:
        """(b, m) bool: the slots that hold an object."""
        return self.objects >= 0

    @property
    def placed(self) -> Tensor:
        """(b, m) bool: the objects whose place is known."""
        return self.present & (self.places[..., 0] >= 0)

    @property
    def turned(self) -> Tensor:
        """(b, m) bool: the objects whose turn is known."""
        return self.present & (self.turns >= 0)

    @property
    def wholly_placed(self) -> Tensor:
        """(b,) bool: the rows with objects, all of whose places are known."""
        return (self.placed == self.present).all(dim=1) & self.present.any(dim=1)

    @property
    def labels(self) -> Tensor:
        """(b, classes) float32: multi-hot labels, as the judge takes them."""
        rows = self.objects.shape[0]  # unlike len, any number of rows where a graph is traced
        found = torch.zeros(rows, self.classes + 1, device=self.device)
        # absent objects go into a column that is cut off
        slots = torch.where(self.present, self.objects.long(), self.classes)
        found = found.scatter_(1, slots, 1.0)[:, : self.classes]
        return found.contiguous()  # a product with rows that are not contiguous may round its last bit differently

    def to(self, device: torch.device | str) -> "Condition":
        return self.moved(lambda values: values.to(device))

    def moved(self, move: Callable[[Tensor], Tensor]) -> "Condition":
        """Returns the condition with each of its tensors replaced by move(tensor), such as a copy on a device."""
        return replace(self, objects=move(self.objects), places=move(self.places), turns=move(self.turns))

    def repeat(self, copies: int) -> "Condition":
        """Returns all rows repeated, end to end: (copies x b) rows."""
        return self.moved(lambda values: values.repeat(copies, *[1] * (values.ndim - 1)))

    def with_slots(self, slots: int) -> "Condition":
        """Pads with absent objects to m = `slots`. Raises ValueError if m is already larger."""
        if (more := slots - self.slots) < 0:
            raise ValueError(f"a condition with {self.slots} slots cannot be padded to {slots}")
        return replace(
            self,
            objects=F.pad(self.objects, (0, more), value=ABSENT),
            places=F.pad(self.places, (0, 0, 0, more), value=ABSENT),
            turns=F.pad(self.turns, (0, more), value=ABSENT),
        )

    def with_places(self, places: Tensor) -> "Condition":
        """Returns the same objects at other places (b, m, 2)."""
        return replace(self, places=places)

    def with_turns(self, turns: Tensor) -> "Condition":
        """Returns the same objects with other turns (b, m)."""
        return replace(self, turns=turns)

    def without_turns(self) -> "Condition":
        """Returns the same objects with unknown turns."""
        return self.with_turns(unknown_turns(self.objects))

    def only_placed(self, rows: Tensor) -> "Condition":
        """Keeps the places and turns of the rows (b,) bool that are True; all others become unknown."""
        placed = self.with_places(torch.where(rows[:, None, None], self.places, float(ABSENT)))
        return placed.with_turns(torch.where(rows[:, None], self.turns, float(ABSENT)))


def unknown_turns(objects: Tensor) -> Tensor:
    """Returns turns (b, m) for objects (b, m), all unknown. They take no memory until they are moved or indexed."""
    return torch.full((1, 1), float(ABSENT), device=objects.device).expand(objects.shape)


def joined(parts: Sequence[Condition]) -> Condition:
    """Joins conditions of one vocabulary end to end, padded to the largest number of slots."""
    slots = max(part.slots for part in parts)
    parts = [part.with_slots(slots) for part in parts]
    return replace(
        parts[0],
        objects=torch.cat([part.objects for part in parts]),
        places=torch.cat([part.places for part in parts]),
        turns=torch.cat([part.turns for part in parts]),
    )


def blobs(places: Tensor, side: int, deviation: float = 0.8) -> Tensor:
    """Returns a Gaussian around each place (b, m, 2) -> (b, m, side, side), `deviation` cells wide, 1 at its centre.

    Cell (i, j) has its centre at ((j + 0.5) / side, (i + 0.5) / side). Blobs are 0 where the place is unknown.
    """
    centres = (torch.arange(side, device=places.device, dtype=places.dtype) + 0.5) / side
    x, y = ((((places[..., i, None] - centres) * (side / deviation)).square() / -2).exp() for i in (0, 1))
    known = (places[..., 0] >= 0).to(places.dtype)
    return known[..., None, None] * y[..., :, None] * x[..., None, :]


def extent(side: int) -> float:
    """Returns the deviation in cells of a blob that covers what an object covers, but at least .8 cells."""
    return max(0.8, OBJECT * side)


BACKGROUND_WEIGHT = 0.05  # of a cell without an object, as nineteen of twenty are


def cell_labels(condition: Condition, side: int) -> Tensor:
    """Returns the object that each cell of a picture shows, `classes` for the background: (b, side, side) int64.

    A cell belongs to the object whose blob is the largest there, within one deviation. Rows with an object of unknown
    place are all -100, as it is also unknown what their cells show.
    """
    spread = blobs(condition.places, side, extent(side)) * condition.placed[..., None, None]
    largest, slot = spread.max(dim=1)
    shown = condition.objects[:, :, None, None].expand_as(spread).gather(1, slot[:, None])[:, 0]
    labels = torch.where(largest >= math.exp(-0.5), shown, condition.classes)
    known = (condition.placed == condition.present).all(dim=1)
    return torch.where(known[:, None, None], labels, -100)


def cell_weights(labels: Tensor, classes: int) -> Tensor:
    """Returns each cell's weight in `cell_loss` from `cell_labels` (b, side, side): float32 of the same shape."""
    return torch.where(labels == classes, BACKGROUND_WEIGHT, 1.0) * (labels >= 0)


LABELS = 24  # i-CLEVR's, for which the weights of label losses were chosen


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the binary cross-entropy of logits (b, classes) on multi-hot labels, the mean over rows.

    It is the sum over classes divided by 24, i-CLEVR's number: a mean over classes would pull a present label the less
    the more objects a vocabulary has.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), labels) * (labels.shape[1] / LABELS)


def cell_loss(logits: Tensor, labels: Tensor, average: Callable[[Tensor], Tensor] = lambda value: value) -> Tensor:
    """Returns the cross-entropy of logits (b, classes + 1, side, side) on `cell_labels`, the background weighted down.

    It is a weighted mean over cells, 0 if no row's places are known. `average` turns this batch's weight
    into the average over all that share a larger one (processes, or parts of a step), so that all divide by the same.
    """
    errors = F.cross_entropy(logits.float(), labels, reduction="none", ignore_index=-100)
    weights = cell_weights(labels, logits.shape[1] - 1)
    return (weights * errors).sum() / average(weights.sum()).clamp(min=1e-6)
