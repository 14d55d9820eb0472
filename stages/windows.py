"""Windows around objects, for an autoencoder that first learns from a quarter of each picture."""

import torch
from torch import Tensor

from models.condition import Condition
from stages.engine.draws import Draws

WINDOW = 4  # side in cells of what `windows_until` trains on: a quarter of a picture


def windows(condition: Condition, draws: Draws) -> tuple[Tensor, Tensor]:
    """Draws a window of 4x4 cells around an object of each picture: its row and column (b,) int64, in 8x8-pixel cells.

    The object is drawn from those whose place is known, and the window is up to one cell off its centre. In a picture
    without known places the window is anywhere.
    """
    chance = draws.uniform(condition.slots).masked_fill(~condition.placed, -1.0)
    place = condition.places.gather(1, chance.argmax(1)[:, None, None].expand(-1, 1, 2))[:, 0]
    place = torch.where(condition.placed.any(1)[:, None], place, draws.uniform(2))
    column, row = (8 * place - WINDOW / 2 + 2 * draws.uniform(2) - 1).round().clamp(0, 8 - WINDOW).long().unbind(1)
    return row, column


def window_of(maps: Tensor, row: Tensor, column: Tensor, cell: int) -> Tensor:
    """Cuts each row's window out of maps: (b, c, 8 cell, 8 cell) -> (b, c, 4 cell, 4 cell)."""
    within = torch.arange(WINDOW * cell, device=maps.device)
    batch = torch.arange(len(maps), device=maps.device)[:, None, None]
    rows, columns = (cell * row)[:, None] + within, (cell * column)[:, None] + within
    return maps[batch, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
