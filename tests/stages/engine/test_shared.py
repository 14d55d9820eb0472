"""Sampling that processes share: whole batches each, so that no bit depends on their number."""

from types import SimpleNamespace

import pytest
import torch

from models.condition import Condition
from stages.engine import distributed
from stages.engine.sampling import in_batches, sample_shared

CPU = torch.device("cpu")


class Watched:
    """A sampler whose pictures depend on the rows of their batch, as rounding does, and which notes what it draws."""

    takes_places = False

    def __init__(self):
        self.drawn = 0

    def sample(self, condition, keys, how):
        self.drawn += len(condition)

        def make(condition, draw, wanted):
            noise = draw(3, 4, 4)
            return noise + 1e-3 * noise.mean(0) + condition.objects[:, :1, None, None]

        return in_batches(condition, keys, how.batch, CPU, make)


ASKED = [
    (Condition.of_lists([[i % 5] for i in range(n)], 5), [(name, i) for i in range(n)])
    for name, n in (("a", 10), ("b", 3), ("c", 4))
]


@pytest.mark.parametrize("world", [2, 3, 8])
def test_processes_draw_each_picture_once_and_all_get_what_one_process_draws(monkeypatch, world):
    how, sampler = SimpleNamespace(batch=4), Watched()
    whole = [*sample_shared(sampler, ASKED, how, 4, CPU)]
    assert [len(pictures) for pictures in whole] == [10, 3, 4] and sampler.drawn == 17
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    monkeypatch.setattr(distributed, "total", lambda value: value)
    found, counts = [torch.zeros_like(pictures) for pictures in whole], []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        sampler = Watched()
        for total, part in zip(found, sample_shared(sampler, ASKED, how, 4, CPU), strict=True):
            total += part
        counts.append(sampler.drawn)
    assert sum(counts) == 17 and max(counts) <= 4 * -(-5 // world)
    for one, several in zip(whole, found, strict=True):
        assert torch.equal(one, several)
