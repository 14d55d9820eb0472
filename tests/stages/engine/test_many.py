"""What a set of many pictures must not do: make a Python object, a float row or a list a picture."""

import tracemalloc

import torch

from data.images import ImageSet, index_type
from data.labels import CLEVR, withheld
from models.condition import Condition, unknown_turns
from models.layouts import LayoutPrior, evenly
from stages.engine.drawn import Drawn
from stages.engine.draws import Draws

MANY = 300_000
BLOCK = torch.tensor([[3, -1, -1], [5, 7, -1], [1, 2, 23]], dtype=torch.int8)
OBJECTS = BLOCK.repeat(MANY // 3, 1)
PLACES = torch.where(OBJECTS[..., None] >= 0, torch.rand(MANY, 3, 2), -1.0)
CPU = torch.device("cpu")


def test_nothing_that_training_needs_makes_python_objects_by_picture():
    conditions = Condition(OBJECTS, PLACES, unknown_turns(OBJECTS), 24)
    tracemalloc.start()
    rows = Drawn(conditions, "by-labels")
    LayoutPrior.of(conditions)
    withheld(OBJECTS, 0.5)
    index, _ = Draws(0, "x", 0, 64, CPU).pictures(rows)
    assert conditions[index].labels.shape == (64, 24)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MANY, f"{peak / MANY:.1f} bytes a picture in Python objects"


def test_the_prior_of_places_is_that_of_all_pictures_at_once(monkeypatch):
    monkeypatch.setattr("models.layouts.CHUNK", 1000)
    few = slice(0, 9998)
    places = PLACES[few].clone()
    places[4] = -1.0  # one of two objects: such a row is left out
    found = LayoutPrior.of(Condition(OBJECTS[few], places, unknown_turns(places[..., 0]), 24), most=50).layouts
    for number in (1, 2, 3):
        rows = [i for i in range(9998) if i % 3 == number - 1 and i != 4]
        expected = places[[rows[i] for i in evenly(len(rows), 50).tolist()], :number]
        assert torch.equal(found[number], expected), number
    assert [*found] == [1, 2, 3]


def test_rows_spread_evenly_stay_within_a_set_of_any_size():
    for count in (2**24 + 1, 10**8, 10**9 + 7):
        rows = evenly(count, 1024)
        assert (rows[0], rows[-1]) == (0, count - 1), "float32 would round 99,999,999 up to 100,000,000"


def test_labels_are_made_in_parts_and_in_the_smallest_type():
    images = ImageSet(torch.zeros(9, 3, 8, 8), torch.zeros(9), OBJECTS[:9], PLACES[:9], None, CLEVR, "")
    parts = [*images.labels_in_parts(4)]
    assert [len(part) for part in parts] == [4, 4, 1]
    assert torch.equal(
        torch.cat(parts), Condition(OBJECTS[:9], PLACES[:9], unknown_turns(OBJECTS[:9]), 24).labels.to(torch.uint8)
    )
    kinds = [index_type(classes) for classes in (24, 128, 129, 40_000)]
    assert kinds == [torch.int8, torch.int8, torch.int16, torch.int32]
