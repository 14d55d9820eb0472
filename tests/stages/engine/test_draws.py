import pytest
import torch

from stages.engine import distributed, draws
from stages.engine.draws import Draws, batch_indices, computed_order, sample_generator, seed_of

CPU = torch.device("cpu")


def test_epochs_are_permutations_laid_end_to_end():
    order = torch.cat([batch_indices(0, "x", step, 7, 10) for step in range(10)])
    for epoch in order.view(7, 10):
        assert sorted(epoch.tolist()) == list(range(10))


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64, 1000, 4097])
def test_a_computed_order_is_a_permutation_that_depends_on_the_epoch(size):
    orders = [computed_order(torch.arange(size), size, 0, "x", epoch) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(size))
    assert size < 10 or not torch.equal(*orders)


def test_a_computed_order_looks_random():
    """Neighbours, positions and pairs of batches are as little related as in a random order."""
    size = 200_000
    order = computed_order(torch.arange(size), size, 1, "x", 3).double()
    other = computed_order(torch.arange(size), size, 1, "x", 4).double()
    for a, b in ((order[1:], order[:-1]), (order, torch.arange(size)), (order, other)):
        assert abs(torch.corrcoef(torch.stack([a, b.double()]))[0, 1]) < 4 / size**0.5
    tenths = torch.bincount((order[: size // 10] * 10 / size).long(), minlength=10)
    assert ((tenths - size / 100).abs() < 4 * (size / 100) ** 0.5).all()


def test_beyond_sixteen_million_pictures_epochs_are_computed_and_laid_end_to_end(monkeypatch):
    monkeypatch.setattr(draws, "LISTED", 9)
    order = torch.cat([batch_indices(0, "x", step, 7, 10) for step in range(10)])
    for epoch in order.view(7, 10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert torch.equal(order[:10], computed_order(torch.arange(10), 10, 0, "x", 0))
    monkeypatch.undo()
    assert draws.LISTED == 2**24, "runs on more pictures would draw them in another order"
    last = batch_indices(0, "x", 10**8 // 64, 64, 10**8)  # of the first epoch and the next
    assert last.unique().numel() == 64 and last.min() >= 0 and last.max() < 10**8


def test_the_order_of_pictures_is_the_same_in_every_release():
    """A run that goes on with a newer release must not draw some pictures twice and others never."""
    generator = torch.Generator().manual_seed(seed_of(0, "x", "order", 1))
    assert torch.equal(batch_indices(0, "x", 1, 10, 10), torch.randperm(10, generator=generator))
    assert computed_order(torch.arange(6), 1000, 0, "x", 1).tolist() == [592, 115, 449, 818, 191, 625]


def test_a_batch_larger_than_the_set_wraps():
    assert len(batch_indices(0, "x", 0, 25, 10)) == 25


def test_a_step_draws_the_same_whenever_it_is_computed():
    def drawn(step):
        d = Draws(0, "ldm", step, 4, CPU)
        return torch.cat([d.normal(3).flatten(), d.uniform().flatten(), d.integers(9).float(), d.indices(50).float()])

    assert torch.equal(drawn(5), drawn(5))
    assert not torch.equal(drawn(5), drawn(6))


@pytest.mark.parametrize(("batch", "world"), [(4, 2), (draws.WIDE, 2), (draws.WIDE + 4, 4), (3 * draws.WIDE, 6)])
def test_processes_share_the_global_batch(monkeypatch, batch, world):
    def drawn():
        d = Draws(0, "x", 3, batch, CPU)
        return torch.cat(
            [d.normal(2), d.uniform(2), d.integers(9, 2).float(), d.stratified()[:, None].expand(-1, 2)], 1
        )

    whole = drawn()
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    parts = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(drawn())
    assert torch.equal(torch.cat(parts), whole)
    assert abs(whole[:, :2].mean()) < 4 / (2 * batch) ** 0.5 and whole.unique(dim=0).shape == whole.shape


def test_a_process_draws_only_the_blocks_of_its_rows(monkeypatch):
    drawn, randn = [], torch.randn
    monkeypatch.setattr(torch, "randn", lambda rows, *rest, **more: drawn.append(rows) or randn(rows, *rest, **more))
    monkeypatch.setattr(distributed, "world_size", lambda: 8)
    monkeypatch.setattr(distributed, "rank", lambda: 3)
    Draws(0, "x", 0, 8 * 512, CPU).normal(2)
    assert drawn == [256, 256], "not the 4,096 rows of the global batch"


def test_batches_of_the_recipes_are_drawn_as_they_always_were():
    generator = torch.Generator().manual_seed(seed_of(0, "x", 3))
    expected = torch.randn(192, 3, generator=generator), torch.rand(192, generator=generator)
    d = Draws(0, "x", 3, 192, CPU)
    assert torch.equal(d.normal(3), expected[0])
    assert torch.equal(d.stratified(), (torch.arange(192) + expected[1]) / 192)


def test_seeds_differ_by_key_and_stay_as_they_are():
    assert seed_of(0, "ldm", 1) != seed_of(0, "ldm", 2)
    assert seed_of("a") == 7299139317422481125  # on every machine and in every release: results depend on it
    assert torch.equal(
        torch.randn(3, generator=sample_generator(1, 2)), torch.randn(3, generator=sample_generator(1, 2))
    )


def test_stratified_draws_fall_one_in_each_part():
    places = Draws(0, "x", 3, 64, CPU).stratified()
    assert torch.equal((places * 64).long(), torch.arange(64))
    assert not torch.equal(places, Draws(0, "x", 4, 64, CPU).stratified())
