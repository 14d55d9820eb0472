"""Captions say what was asked for, and only what the judge missed is red; grids have their pictures in order."""

import io

import numpy as np
import torch
from PIL import Image

from stages.engine.pictures import captioned, cell_of, grid, page_scale, png


def test_only_what_the_judge_missed_is_red():
    tile = png(torch.full((3, 64, 64), 0.5))
    pictures = [{"png": tile, "labels": [{"name": "red cube", "hit": hit}]} for hit in (True, False, True)]
    sheet = np.asarray(Image.open(io.BytesIO(captioned(pictures, columns=2, side=64))).convert("RGB")).astype(int)
    red = (sheet[..., 0] - sheet[..., 1:].max(-1)) > 60
    columns, rows = np.flatnonzero(red.any(0)), np.flatnonzero(red.any(1))
    assert columns.min() > 72, "the first picture's caption is not red"
    assert rows.min() >= 72 and rows.max() < 95, "the caption is below its picture, in the first row"
    assert (sheet[8:72, 8:72] == 128).all(), "the picture itself is untouched"


def test_a_grid_is_filled_row_by_row_and_its_cells_are_found_again():
    levels = torch.arange(10) / 16
    images = (2 * levels - 1).view(10, 1, 1, 1).expand(10, 3, 64, 64)
    sheet = grid(images)
    assert sheet.shape == (3, 2 * 66, 8 * 66)
    for place, level in enumerate(levels):
        top, left = place // 8 * 66, place % 8 * 66
        assert (sheet[:, top : top + 64, left : left + 64] == level).all(), place
        assert (sheet[:, top + 64, left : left + 66] == 1).all() and (sheet[:, top : top + 66, left + 64] == 1).all()
    assert (sheet[:, 66:, 2 * 66 :] == 1).all(), "what is left of the last row is white"
    scale = page_scale(64)
    for place in (0, 7, 9):
        assert cell_of(png(sheet, scale), place, 64) == png((images[place] + 1) / 2, scale), place
