"""What the program chooses for a sample follows from the sample's key alone."""

import torch

from models.condition import Condition
from models.layouts import LayoutPrior
from stages.engine.sampling import by_names, with_chosen_places, with_chosen_turns
from stages.engine.schema import Eval

KEYS = [(3, "sample", i) for i in range(40)]
ASKED = Condition.of_lists([[1, 5], [7]] * 20, 24)


def test_a_turn_is_chosen_for_each_object_that_has_none():
    given = ASKED.with_turns(torch.tensor([[0.5, -1.0], [-1.0, -1.0]]).repeat(20, 1))
    found = with_chosen_turns(given, KEYS, Eval())
    assert torch.equal(found.turned, ASKED.present) and (found.turns[::2, 0] == 0.5).all()
    assert (found.turns[~ASKED.present] == -1).all()
    chosen = with_chosen_turns(ASKED, KEYS, Eval()).turns[ASKED.present]
    assert len(chosen.unique()) == len(chosen) == 60 and 0 <= chosen.min() < 0.1 < 0.9 < chosen.max() < 1


def test_a_turn_follows_from_the_sample_s_key_and_not_from_what_is_drawn_beside_it():
    whole = with_chosen_turns(ASKED, KEYS, Eval())
    for rows in ([0], [7, 3, 2]):
        wider = ASKED[rows].with_slots(5)
        alone = with_chosen_turns(wider, [KEYS[i] for i in rows], Eval())
        assert torch.equal(alone.turns[:, :2], whole.turns[rows])
    assert len(with_chosen_turns(ASKED[:0], [], Eval())) == 0


def test_unknown_turns_stay_unknown_where_places_do():
    assert not with_chosen_turns(ASKED, KEYS, Eval(places="unknown")).turned.any()


NEAR, FAR = [(0.4, 0.4), (0.5, 0.5)], [(0.2, 0.2), (0.8, 0.8)]
SEEN = LayoutPrior.of(Condition.of_lists([[1, 5], [2, 3]] * 8, 24, [NEAR, FAR] * 8))


def test_layouts_are_chosen_from_those_whose_objects_are_as_far_apart_as_asked():
    asked = Condition.of_lists([[1, 5]] * 40, 24)
    gaps = {}
    for apart in (0.0, 0.3):
        places = with_chosen_places(asked, KEYS, SEEN, Eval(apart=apart)).places
        gaps[apart] = (places[:, 0] - places[:, 1]).norm(dim=1)
    assert gaps[0.0].min() < 0.3 <= gaps[0.3].min()


def test_unknown_places_stay_unknown_where_they_are_asked_to():
    assert with_chosen_places(ASKED, KEYS, SEEN, Eval(places="unknown")) is ASKED


def test_a_condition_by_names_has_the_objects_and_neither_places_nor_turns():
    given = Condition.of_lists([[1, 5], [2, 3]], 24, [NEAR, FAR]).with_turns(torch.full((2, 2), 0.5))
    found = by_names(given)
    assert torch.equal(found.objects, given.objects) and given.placed.all() and given.turned.all()
    assert not found.placed.any() and not found.turned.any()
