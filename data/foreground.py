"""Tells objects from scenery by a picture's difference from the median picture of the set."""

import torch
import torch.nn.functional as F
from torch import Tensor

from data.images import to_unit
from data.joined import Rows


def median_picture(images: Rows, device: torch.device) -> Tensor:
    """Returns the median picture (1, 3, s, s) in [-1, 1] of a sample of the set: the scenery without objects."""
    exact = torch.float64 if len(images) > 2**24 else torch.float32  # which holds no larger integers
    chosen = torch.linspace(0, len(images) - 1, min(len(images), 501), dtype=exact, device=images.device).long()
    # on the CPU: a GPU has no deterministic median
    return to_unit(images[chosen]).cpu().median(dim=0).values[None].to(device)


def pixel_weights(images: Tensor, background: Tensor | None, foreground: float) -> Tensor:
    """Returns pixel weights (b, 1, s, s): up to 1 + `foreground` where a picture differs from the median picture."""
    if background is None:
        return torch.ones_like(images[:, :1])
    differs = ((images - background).abs().amax(dim=1, keepdim=True) / 0.2).clamp(max=1)
    # an object's edge, and errors next to it, count like the object
    return 1 + foreground * F.max_pool2d(differs, 3, 1, 1)


def difference_error(error: Tensor, weights: Tensor) -> Tensor:
    """Returns the weighted mean square of the differences between neighbouring errors, across and down.

    `error` (b, 3, s, s): made - wanted; `weights` (b, 1, s, s): of the pixels; a pair has the larger of its two. A
    constant error counts nothing, a blurred edge much: a squared error alone hardly notices it.
    """
    total = error.new_zeros(())
    for axis in (2, 3):
        length = error.shape[axis] - 1
        differences = error.narrow(axis, 1, length) - error.narrow(axis, 0, length)
        of_pair = torch.maximum(weights.narrow(axis, 1, length), weights.narrow(axis, 0, length))
        total = total + (of_pair * differences.square()).mean()
    return total
