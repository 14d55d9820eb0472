"""A reader of pictures: which objects are shown, and where. It measures placing; no generator is trained with it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.condition import Condition

NEAR = 1.0  # cells: a cell whose centre is closer to an object than this learns its offset
IGNORED = -100  # a label that the loss leaves out


@dataclass(frozen=True, order=True)
class Found:
    """An object found in a picture: its index, its place in [0, 1] of the picture, and the probability of one there."""

    index: int
    x: float
    y: float
    confidence: float


STRIDE = 4  # pixels a side of a cell


class Reader(nn.Module):
    """Predicts for each cell of 4x4 pixels what it shows, and how far from its centre the object is.

    Objects are found by their centres, as in arXiv 1904.07850. `width` 64 gives .3 million weights and a receptive
    field of 72 pixels.
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
        assert self.head.bias is not None
        with torch.no_grad():  # cells start as background, which most are, with probability .99
            self.head.bias.zero_()
            self.head.bias[classes] = math.log(99 * classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, s, s) in [-1, 1] -> logits (b, classes + 1, s/4, s/4), background last; offsets (b, 2, s/4, s/4).

        An offset is the object's place minus the cell's centre, x and y, in cells.
        """
        out = self.head(self.body(images))
        return out[:, :-2], out[:, -2:]


def targets(condition: Condition, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a reader's targets: labels (b, side, side) int64, offsets (b, 2, side, side), near (b, side, side) bool.

    A cell with an object's place in it has that object's label; its neighbours within `NEAR` cells are ignored, as
    either answer is right there, and all others are background (`classes`). `near` marks the cells whose offsets
    count. Of two objects in one cell the one closer to its centre counts. Rows with an object of unknown place are
    ignored.
    """
    centres = torch.arange(side, device=condition.device) + 0.5
    dx, dy = (condition.places[..., i, None] * side - centres for i in (0, 1))
    dx, dy = torch.broadcast_tensors(dx[..., None, :], dy[..., :, None])  # (b, m, side, side)
    own = (condition.places * side).floor().clamp(max=side - 1)  # a place on the far edge is in the last cell
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


def target_counts(condition: Condition, side: int) -> Tensor:
    """Returns how many objects and how many near cells `targets` marks: (2,) float32."""
    labels, _, near = targets(condition, side)
    return torch.stack([((labels >= 0) & (labels < condition.classes)).sum().float(), near.sum().float()])


def reading_loss(
    logits: Tensor, offsets: Tensor, condition: Condition, counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the cells' cross-entropy per object and the offsets' squared error per near cell, in float32.

    `counts`: `target_counts` averaged over all that share a larger batch (processes, or parts of a step), so that all
    divide by the same; by default this batch's own.
    """
    labels, wanted, near = targets(condition, logits.shape[-1])
    objects, cells = (target_counts(condition, logits.shape[-1]) if counts is None else counts).clamp(min=1)
    # summed here: the op that sums has no deterministic backward on a GPU
    errors = F.cross_entropy(logits.float(), labels, reduction="none", ignore_index=IGNORED).sum()
    return errors / objects, ((offsets.float() - wanted).square() * near[:, None]).sum() / cells


def found(logits: Tensor, offsets: Tensor) -> list[list[Found]]:
    """Returns each picture's objects: in cells where one is likelier than not, and than in the eight cells around."""
    logits, side = logits.float(), logits.shape[-1]
    odds = logits[:, :-1].logsumexp(dim=1) - logits[:, -1]  # log odds of an object against the background
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
    """Returns each object's highest probability over the cells: (b, classes + 1, side, side) -> (b, classes)."""
    return logits.float().softmax(dim=1)[:, :-1].amax(dim=(2, 3))


def distances(pictures: Sequence[list[Found]], condition: Condition) -> list[list[float | None]]:
    """Returns, per picture and placed object, the distance to the nearest one found of that name, in picture widths.

    It is None if none of that name is found.
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


def placing(pictures: Sequence[list[Found]], condition: Condition, pixels: int) -> dict[str, float | None]:
    """Measures how well pictures show the objects asked for.

    `pixels`: the pictures' side. `placement_error_pixels` and `placement_error_95`: mean and 95th percentile of
    `distances` over the objects found, None if there are none; `not_found`: the share of placed objects that were not
    found, None if no object has a place. `too_many`, `too_few`: the share of pictures that show more objects or fewer
    than asked.
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
