"""The configuration's choices match the code's: a choice that is added in only one of them is noticed."""

from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from models.condition import Condition
from models.layouts import LayoutPrior
from models.samplers import spaced_timesteps
from stages.diffusion import DiffusionSampler
from stages.engine import schema
from stages.engine.config import load
from stages.engine.optim import learning_rate
from stages.gan import auxiliary_weight
from tests.conftest import HERE, SMOKE


def choices(section, key):
    """Returns the values that a key can have."""
    annotation = section.model_fields[key].annotation
    if key == "models":  # a tuple of them
        annotation = get_args(annotation)[0]
    found = get_args(annotation)
    assert len(found) > 1
    return found


def algorithm(name):
    """Returns the sampling function that a sampler's name selects."""
    config = load(HERE / SMOKE, [f"eval.sampler={name}"])
    context = SimpleNamespace(device=torch.device("cpu"))
    sampler = DiffusionSampler(context, "ldm", torch.nn.Identity(), config.ldm, (6, 8, 8), lambda x: x, LayoutPrior())
    return sampler._steps(Condition.of_lists([[]], 24), config.eval, lambda: torch.zeros(1, 6, 8, 8)).gi_code


def weight_of_labels(schedule):
    settings = SimpleNamespace(steps=4, auxiliary=1.0, auxiliary_schedule=schedule)
    return auxiliary_weight(settings, 1)


@pytest.mark.parametrize(
    ("section", "key", "effect"),
    [
        (schema.Eval, "sampler", algorithm),
        (schema.Eval, "spacing", lambda spacing: tuple(spaced_timesteps(1000, 10, spacing))),
        (schema.Training, "decay", lambda decay: learning_rate(30, 100, 1.0, 0, decay)),
        (schema.Evaluator, "decay", lambda decay: learning_rate(30, 100, 1.0, 0, decay)),
        (schema.Gan, "auxiliary_schedule", weight_of_labels),
    ],
)
def test_where_there_is_no_registry_each_choice_does_something_of_its_own(section, key, effect):
    found = choices(section, key)
    assert len({effect(choice) for choice in found}) == len(found)
