"""Windows around objects, for an autoencoder that first learns from a quarter of each picture."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.condition import Condition


def windows(condition: Condition, uniform: Callable[..., Tensor], side: int) -> tuple[Tensor, Tensor]:
    """Draws a window, a quarter of a picture of `side` cells a side, around an object of each picture.

    Returns its first row and column (b,) int64, in cells. `uniform(*shape)` draws (b, *shape) from [0, 1).

    The object is drawn from those whose place is known, and the window is up to one cell off its centre. In a picture
    without known places the window is anywhere.
    """
    chance = uniform(condition.slots).masked_fill(~condition.placed, -1.0)
    place = condition.places.gather(1, chance.argmax(1)[:, None, None].expand(-1, 1, 2))[:, 0]
    place = torch.where(condition.placed.any(1)[:, None], place, uniform(2))
    column, row = (side * place - side / 4 + 2 * uniform(2) - 1).round().clamp(0, side - side // 2).long().unbind(1)
    return row, column


def window_of(maps: Tensor, row: Tensor, column: Tensor, cell: int) -> Tensor:
    """Cuts each row's window out of maps of `cell` values a cell: (b, c, h, h) -> (b, c, h / 2, h / 2)."""
    within = torch.arange(maps.shape[-1] // 2, device=maps.device)
    batch = torch.arange(len(maps), device=maps.device)[:, None, None]
    rows, columns = (cell * row)[:, None] + within, (cell * column)[:, None] + within
    return maps[batch, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
