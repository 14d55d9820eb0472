"""The places at which `make placed` asks for an object."""

import pytest
import torch

from models.condition import Condition
from models.layouts import LayoutPrior
from stages.engine.errors import UserError
from stages.experiments.placed import farthest_first, walk


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
