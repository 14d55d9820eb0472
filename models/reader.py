"""A reader of pictures: which objects are shown, and where. It judges placing; no generator is trained with it."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.condition import Condition

SIDE = 16  # cells a side: four pixels each
NEAR = 1.0  # cells: a cell whose centre is nearer to an object than that learns the way to it
IGNORED = -100  # a label that no loss looks at


class Found(NamedTuple):
    """An object in a picture: its index, its place in [0, 1] of the picture, and how sure it is that one is there."""

    index: int
    x: float
    y: float
    confidence: float


class Reader(nn.Module):
    """Convolutions on a 16x16 grid of cells: what each cell shows, and how far from its centre the object stands.

    Objects by their centres, as in arXiv 1904.07850. `width` 64: .3 million weights, and a view of 74 pixels.
    """

    def __init__(self, classes: int, width: int = 64):
        super().__init__()

        def layer(inputs: int, outputs: int, dilation: int = 1) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
            return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),
            *layer(12, width // 2),
            nn.PixelUnshuffle(2),
            *layer(2 * width, width),
            *layer(width, width),
            *layer(width, width, dilation=2),
            *layer(width, width, dilation=2),
            *layer(width, width),
            *layer(width, width),
        )
        self.head = nn.Conv2d(width, classes + 1 + 2, 1)
        with torch.no_grad():  # so that cells begin as background with probability .99, which most are
            self.head.bias.zero_()
            self.head.bias[classes] = math.log(99 * classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, 64, 64) in [-1, 1] -> logits (b, classes + 1, 16, 16), background last; offsets (b, 2, 16, 16).

        An offset is the object's place less the cell's centre, x and y, in cells.
        """
        out = self.head(self.body(images))
        return out[:, :-2], out[:, -2:]


def targets(condition: Condition, side: int = SIDE) -> tuple[Tensor, Tensor, Tensor]:
    """What a reader should say: labels (b, side, side) int64, offsets (b, 2, side, side), near (b, side, side) bool.

    A cell with an object's place in it has that object's label; its neighbours within `NEAR` cells are ignored, as
    they may say either, and all others are background (`classes`). `near` marks the cells whose offsets count. Of two
    objects in one cell the nearer to its centre counts. Rows with an object whose place is unknown are ignored
    throughout.
    """
    centres = torch.arange(side, device=condition.device) + 0.5
    dx, dy = (condition.places[..., i, None] * side - centres for i in (0, 1))
    dx, dy = torch.broadcast_tensors(dx[..., None, :], dy[..., :, None])  # (b, m, side, side)
    own = (condition.places * side).floor().clamp(max=side - 1)  # a place on the far rim is in the last cell
    inside = (own[..., 0, None, None] == centres.floor()) & (own[..., 1, None, None] == centres.floor()[:, None])
    placed = condition.placed[..., None, None]
    inside, distance = inside & placed, (dx.square() + dy.square()).sqrt()
    nearest = torch.where(placed, distance - 2 * NEAR * inside, torch.inf).argmin(dim=1, keepdim=True)

    def of_nearest(values: Tensor) -> Tensor:
        return values.gather(1, nearest)[:, 0]

    held = of_nearest(inside)
    near = held | (of_nearest(torch.where(placed, distance, torch.inf)) < NEAR)
    labels = of_nearest(condition.objects[..., None, None].expand_as(distance))
    labels = torch.where(held, labels, torch.where(near, IGNORED, condition.classes))
    known = (condition.placed == condition.present).all(dim=1)[:, None, None]
    offsets = torch.stack([of_nearest(dx), of_nearest(dy)], dim=1)
    return torch.where(known, labels, IGNORED), offsets * (near & known)[:, None], near & known


def reading_loss(
    logits: Tensor, offsets: Tensor, condition: Condition, average: Callable[[Tensor], Tensor] = lambda value: value
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the cells and squared error of the offsets, each a mean over objects. In float32.

    `average` is that over processes, of which each has a part of the batch.
    """
    labels, wanted, near = targets(condition, logits.shape[-1])
    errors = F.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=IGNORED)
    objects = average(((labels >= 0) & (labels < condition.classes)).sum().float()).clamp(min=1)
    missed = ((offsets.float() - wanted).square() * near[:, None]).sum() / average(near.sum().float()).clamp(min=1)
    return errors / objects, missed


def found(logits: Tensor, offsets: Tensor) -> list[list[Found]]:
    """Per picture, the objects that are there: more probable than not, and more than in the eight cells around."""
    logits, side = logits.float(), logits.shape[-1]
    odds = logits[:, :-1].logsumexp(dim=1) - logits[:, -1]  # of an object against the background, as logarithm
    peaks = (odds > 0) & (odds == F.max_pool2d(odds[:, None], 3, 1, 1)[:, 0])
    picture, row, column = peaks.nonzero(as_tuple=True)
    index = logits[picture, :-1, row, column].argmax(dim=1)
    dx, dy = offsets[picture, :, row, column].float().unbind(dim=1)
    x, y = (((cell + 0.5 + d) / side).clamp(0, 1) for cell, d in ((column, dx), (row, dy)))
    pictures: list[list[Found]] = [[] for _ in range(len(logits))]
    columns = picture, index, x, y, odds[picture, row, column].sigmoid()
    for i, *values in zip(*(c.tolist() for c in columns), strict=True):
        pictures[i].append(Found(*values))
    return pictures


def label_scores(logits: Tensor) -> Tensor:
    """(b, classes + 1, side, side) -> (b, classes): each object's probability where it is most probable."""
    return logits.float().softmax(dim=1)[:, :-1].amax(dim=(2, 3))


def distances(pictures: Sequence[list[Found]], condition: Condition) -> list[list[float | None]]:
    """Per picture and asked object with a place: how far the nearest found one of that name is, in pictures' widths.

    None where none of that name is found.
    """
    rows = zip(pictures, condition.objects.tolist(), condition.places.tolist(), condition.placed.tolist(), strict=True)
    return [
        [
            min((((f.x - x) ** 2 + (f.y - y) ** 2) ** 0.5 for f in seen if f.index == index), default=None)
            for index, (x, y), placed in zip(*asked, strict=True)
            if placed
        ]
        for seen, *asked in rows
    ]


def placing(pictures: Sequence[list[Found]], condition: Condition, pixels: int = 64) -> dict[str, float | None]:
    """How pictures show what was asked, in figures.

    `placement_error_pixels` and `placement_error_95`: mean and 95th percentile of `distances`, of the objects found;
    `not_found`: the share of placed objects that were not. All None where nothing has a place, or nothing was found.
    `too_many`, `too_few`: the share of pictures that show more objects or fewer than asked.
    """
    every = [d for row in distances(pictures, condition) for d in row]
    errors = torch.tensor([d for d in every if d is not None], dtype=torch.float64) * pixels
    shown = torch.tensor([len(seen) for seen in pictures])
    asked = condition.present.sum(dim=1).cpu()
    return {
        "placement_error_pixels": errors.mean().item() if len(errors) else None,
        "placement_error_95": errors.quantile(0.95).item() if len(errors) else None,
        "not_found": 1 - len(errors) / len(every) if every else None,
        "too_many": (shown > asked).double().mean().item(),
        "too_few": (shown < asked).double().mean().item(),
    }
