"""Captions say what was asked for, and only what the judge missed is red."""

import io

import numpy as np
import torch
from PIL import Image

from stages.engine.pictures import captioned, png


def test_only_what_the_judge_missed_is_red():
    tile = png(torch.full((3, 64, 64), 0.5))
    pictures = [{"png": tile, "labels": [{"name": "red cube", "hit": hit}]} for hit in (True, False, True)]
    sheet = np.asarray(Image.open(io.BytesIO(captioned(pictures, columns=2, side=64))).convert("RGB")).astype(int)
    red = (sheet[..., 0] - sheet[..., 1:].max(-1)) > 60
    columns, rows = np.flatnonzero(red.any(0)), np.flatnonzero(red.any(1))
    assert columns.min() > 72, "the first picture's caption is not red"
    assert rows.min() >= 72 and rows.max() < 95, "the caption is below its picture, in the first row"
    assert (sheet[8:72, 8:72] == 128).all(), "the picture itself is untouched"
