"""What a verdict says of a place and of what was found instead, from made-up scores and sightings."""

import pytest
import torch

from data.labels import Vocabulary
from models.reader import Found
from stages.use.verdict import Judge
from tests.stages.handful import context_with

NAMES = ["red cube", "cyan sphere", "gray cylinder", "blue cube"]


@pytest.fixture
def judge():
    """A judge without networks."""
    made = object.__new__(Judge)
    made.context, made.vocabulary = context_with("data.size=128"), Vocabulary(NAMES)
    return made


def test_an_object_is_seen_nearest_to_where_it_was_asked_for_or_else_where_it_is_surest(judge):
    seen = [Found(0, 0.9, 0.9, 0.99), Found(0, 0.5, 0.75, 0.6), Found(1, 0.1, 0.2, 0.7), Found(1, 0.3, 0.4, 0.8)]
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0])
    cube, sphere, cylinder = judge._of_picture([0, 1, 2], [(0.5, 0.5), None, (0.5, 0.5)], logits, seen)
    assert cube.place == (0.5, 0.75) and cube.pixels == pytest.approx(32), "a quarter of 128"
    assert sphere.place == (0.3, 0.4) and sphere.pixels is None
    assert cylinder.found and cylinder.place is None and cylinder.pixels is None


def test_what_took_an_object_s_rank_is_named_with_its_own_score(judge):
    cube, sphere = judge._of_picture([0, 1], [None, None], torch.tensor([1.0, -1.0, -2.0, 2.0]), [])
    assert (cube.found, cube.instead, cube.instead_score) == (True, None, None)
    assert cube.score == pytest.approx(0.7311, abs=1e-4) and sphere.score == pytest.approx(0.2689, abs=1e-4)
    assert (sphere.found, sphere.instead) == (False, "blue cube")
    assert sphere.instead_score == pytest.approx(0.8808, abs=1e-4)
