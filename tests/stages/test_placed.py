"""The places at which `make placed` asks for an object."""

from types import SimpleNamespace

import pytest
import torch

import stages.experiments.placed
from models.condition import Condition
from models.layouts import LayoutPrior
from models.reader import Found
from stages.engine.errors import UserError
from stages.experiments.placed import farthest_first, walk, walked
from tests.stages.handful import context_with


def training(rows=300):
    """Returns conditions of pairs of objects that are at least .3 apart."""
    rng = torch.Generator().manual_seed(0)
    places = torch.rand(rows, 2, 2, generator=rng)
    places = places[(places[:, 0] - places[:, 1]).norm(dim=1) >= 0.3]
    return Condition.of_lists([[0, 1]] * len(places), 3, places.tolist())


def test_one_object_walks_the_other_stays_and_both_keep_apart():
    conditions = training()
    places = walk(conditions, 2)
    assert places.shape == (8, 2, 2)
    assert (places[:, 0] == places[0, 0]).all() and len(places[:, 1].unique(dim=0)) == 8
    assert (places[:, 0] - places[:, 1]).norm(dim=1).min() >= LayoutPrior.of(conditions).nearest() - 1e-6
    assert torch.pdist(places[:, 1]).min() > 0.15  # spread over the floor
    upper, lower = places[:4, 1], places[4:, 1]
    assert upper[:, 1].max() <= lower[:, 1].min()
    for row in (upper, lower):
        assert (row[:, 0].diff() >= 0).all()


def test_more_objects_than_any_picture_has_are_refused():
    with pytest.raises(UserError, match="no training picture of 3 objects"):
        walk(training(), 3)


def test_the_farthest_come_first():
    points = torch.tensor([[0.0, 0.0], [0.1, 0.0], [1.0, 0.0], [0.5, 0.0]])
    assert farthest_first(points, 3) == [0, 2, 3]


def test_how_far_the_moved_object_is_off_is_in_pixels_and_of_it_alone(monkeypatch):
    """All pictures have the same noise, so that nothing but the place differs."""
    asked = Condition.of_lists([[0, 1]] * 2, 3, [[(0.1, 0.1), (0.5, 0.5)], [(0.1, 0.1), (0.75, 0.5)]])
    drawn = []

    def sample(condition, keys, how):
        drawn.extend(keys)
        return torch.zeros(2, 3, 64, 64)

    at = [Found(0, 0.9, 0.9, 1.0), Found(1, 0.5, 0.75, 1.0)], [Found(0, 0.1, 0.1, 1.0)]
    monkeypatch.setattr(stages.experiments.placed, "read", lambda reader, images, context: (at, None))
    _, off = walked(SimpleNamespace(sample=sample), None, asked, context_with("eval.seeds=[7]"))
    assert off == [pytest.approx(16), None], "a quarter of 64 pixels; in the second it is not found"
    assert len(drawn) == 2 and drawn[0] == drawn[1] and drawn[0][0] == 7
