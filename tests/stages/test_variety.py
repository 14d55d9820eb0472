"""Variety is measured on real pictures of one label set, and models are asked for the same sets."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from data.images import to_unit
from models.condition import Condition
from models.distances import mean_distance, mean_pairwise_distance
from stages.experiments.variety import of_one_label_set, of_one_layout, variety, variety_of_real
from tests.stages.handful import context_with, noise_pictures

A, NEAR_A, B = (0.5, 0.5), (0.51, 0.5), (0.7, 0.7)
SCENES = Condition.of_lists(
    [[0, 1], [1, 0], [0, 1], [0, 2], [0, 1], [0], [0]],
    3,
    [[A, B], [B, NEAR_A], [B, A], [A, B], [A, None], [A], [A]],
)


def test_pairs_are_of_one_label_set_and_layout_in_any_order():
    """The third picture swaps the two objects, the fourth has others, the fifth has an unknown place."""
    assert of_one_layout(SCENES, 64).tolist() in ([[0, 1], [5, 6]], [[5, 6], [0, 1]])
    assert of_one_layout(Condition.of_lists([[0], [0]], 3), 64).shape == (0, 2)


def test_label_sets_are_those_of_many_pictures_and_of_most_objects():
    many = Condition.of_lists([[0]] * 9 + [[0, 1]] * 8 + [[2]] * 7, 3, [[A]] * 9 + [[A, B]] * 8 + [[A]] * 7)
    assert [rows.tolist() for rows in of_one_label_set(many)] == [[*range(9, 17)], [*range(9)]]


def test_distances_are_root_mean_squares():
    a, b = torch.zeros(2, 3, 4, 4), torch.stack([torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), -1.0)])
    assert mean_distance(a, b) == pytest.approx(0.75)
    assert mean_distance(a[:1], b[:1]) == pytest.approx(mean_pairwise_distance(torch.cat([a[:1], b[:1]])))


def of_one_object(tmp_path):
    """Returns sixteen noise pictures labelled with one object at one place."""
    dataset = noise_pictures(tmp_path)
    conditions = Condition.of_lists([[0]] * 16, 3, [[A]] * 16)
    return replace(dataset, images=torch.cat([dataset.images, 255 - dataset.images]), conditions=conditions)


def test_a_model_that_gives_the_real_pictures_has_their_variety(tmp_path):
    dataset = of_one_object(tmp_path)
    pictures = to_unit(dataset.images)
    real = variety_of_real(dataset)
    assert real["over_layouts"] == pytest.approx(mean_pairwise_distance(pictures))
    wanted = []

    def sample(condition, keys, how):
        wanted.append(condition)
        rows = range(16) if "set 0" in keys[0] else of_one_layout(dataset.conditions, 64)[:, int("second" in keys[0])]
        return pictures[list(rows)]

    made = variety(SimpleNamespace(sample=sample, takes_places=True), dataset, context_with())
    assert made == pytest.approx(real)
    assert all(
        condition.places[:, 0].tolist() == torch.tensor(A).expand(len(condition), 2).tolist() for condition in wanted
    )
    unplaced = variety(SimpleNamespace(sample=sample, takes_places=False), dataset, context_with())
    assert unplaced == {"one_layout": None, "over_layouts": pytest.approx(real["over_layouts"])}


def test_without_such_pictures_there_is_no_figure(tmp_path):
    assert variety_of_real(noise_pictures(tmp_path)) == {"one_layout": None, "over_layouts": None}
