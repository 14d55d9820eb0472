"""Helpers for tests of a task's single steps: a few noise pictures, and a context on the smoke configuration."""

import time
from contextlib import ExitStack
from types import SimpleNamespace

import torch

from data.labels import Vocabulary
from models.condition import Condition
from stages.engine.command import Context
from stages.engine.config import load
from stages.engine.dataset import Dataset
from tests.conftest import HERE, SMOKE

DEVICE = torch.device("cpu")


def noise_pictures(folder, size: int = 64) -> Dataset:
    """Returns eight noise pictures, each labelled with one of three objects; none is held out."""
    names = Vocabulary(["red cube", "cyan sphere", "gray cylinder"])
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, size, size), dtype=torch.uint8, generator=generator)
    conditions = Condition.of_lists([[i % 3] for i in range(8)], classes=3)
    return Dataset(images, conditions, images[:0], conditions[:0], {}, names, "", "", "", "", folder)


def context_with(*changes: str) -> Context:
    """Returns a context of the smoke configuration with changes, in float32 on the CPU."""
    config = load(HERE / SMOKE, [*changes])
    return Context(config, DEVICE, torch.float32, SimpleNamespace(config=SMOKE), time.perf_counter(), ExitStack())
