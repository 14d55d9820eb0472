"""The sections of the networks that judge pictures: `evaluator` and `reader`."""

from typing import Annotated, Literal

from pydantic import Field

from stages.engine.schema.base import Training
from stages.engine.values import File, NonNegative, Positive, Share


class Evaluator(Training):
    checkpoint: File = None  # the lab's checkpoint.pth; null: one is trained here
    low_resolution: Share = 0.5  # share of each batch downscaled to half its side and back, as for the lab's
    cell_weight: NonNegative = 0.0  # weight of a second loss: what each cell of its middle features shows, by places
    steps: Positive = 1000
    batch: Positive = 128
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    decay: Literal["constant", "linear", "cosine"] = "cosine"


class Reader(Training):
    low_resolution: Share = 0.25  # share of each batch downscaled to half its side and back, as for the evaluator
    steps: Positive = 600
    batch: Positive = 32
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.98
