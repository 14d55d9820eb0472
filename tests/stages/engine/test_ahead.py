"""Batches of a set that stays on disk are read ahead in a thread, and are the same."""

import threading

import pytest
import torch

from data.joined import Joined
from models.condition import Condition
from stages.engine import ahead
from stages.engine.ahead import AHEAD, Batches
from stages.engine.drawn import Drawn
from stages.engine.draws import Draws

CPU = torch.device("cpu")
SET = torch.arange(60).view(20, 3)
DRAWN = Drawn(Condition.of_lists([[i % 4, 4] if i % 3 else [i % 4] for i in range(20)], 5), "by-labels")


class Watched(Joined):
    """A set that notes in which thread it is read, and how often."""

    def __init__(self, parts):
        super().__init__(parts)
        self.reads = []

    def __getitem__(self, chosen):
        self.reads.append(threading.current_thread().name)
        return super().__getitem__(chosen)


def test_what_is_read_ahead_is_what_the_step_draws(monkeypatch):
    monkeypatch.setattr(ahead, "memory", lambda: 100)  # bytes: the set is larger
    rows = Watched([SET[:7], SET[7:]])
    batches = Batches(rows, CPU)
    for step in [*range(12), 4, 40]:  # also where a run goes on elsewhere
        for part in range(3):
            index, coming = Draws(1, "gan", step, 4, CPU).pictures(DRAWN, part, 3)
            assert torch.equal(batches(index, coming), SET[index]), (step, part)
    assert all(name.startswith("ahead") for name in rows.reads)
    assert len(rows.reads) <= 36 + 2 * 3 + 3 * AHEAD, "each batch is read once, but for those after a jump"


def test_the_next_batches_are_there_before_they_are_asked_for(monkeypatch):
    monkeypatch.setattr(ahead, "memory", lambda: 100)
    rows = Watched([SET])
    batches, drawn = Batches(rows, CPU), Draws(1, "vae", 0, 4, CPU)
    batches(*drawn.pictures(DRAWN))
    assert batches.ahead is not None
    batches.ahead._thread.shutdown(wait=True)  # what was begun is finished
    assert len(rows.reads) == 1 + AHEAD
    index, coming = Draws(1, "vae", 1, 4, CPU).pictures(DRAWN)
    assert torch.equal(batches.ahead._begun[coming.key].result(), SET[index])


def test_a_set_that_fits_into_memory_is_read_where_it_is_asked_for():
    rows = Watched([SET])
    batches = Batches(rows, CPU)
    index, coming = Draws(1, "vae", 0, 4, CPU).pictures(DRAWN)
    assert torch.equal(batches(index, coming), SET[index])
    assert rows.reads == ["MainThread"]


@pytest.mark.parametrize(("memory", "on_disk"), [(2 * SET.nbytes, False), (2 * SET.nbytes - 1, True)])
def test_a_set_stays_on_the_disk_if_it_takes_more_than_half_of_the_memory(monkeypatch, memory, on_disk):
    monkeypatch.setattr(ahead, "memory", lambda: memory)
    assert (Batches(SET, CPU).ahead is not None) == on_disk


def test_an_error_of_the_thread_is_the_step_s(monkeypatch):
    monkeypatch.setattr(ahead, "memory", lambda: 100)
    batches = Batches(SET[:5], CPU)
    with pytest.raises(IndexError):
        for step in range(9):
            batches(*Draws(1, "vae", step, 4, CPU).pictures(DRAWN))
