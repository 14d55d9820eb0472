"""What the program chooses for a sample follows from the sample's key alone."""

import torch

from models.condition import Condition
from stages.engine.sampling import with_chosen_turns
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
