import pytest
import torch
from torch import nn

from stages.engine.config import load
from stages.engine.optim import Optimizer, first_bad_step, learning_rate


def test_rates_at_both_ends():
    assert learning_rate(0, 100, 1.0, 10, "cosine") == pytest.approx(0.1)
    assert learning_rate(9, 100, 1.0, 10, "cosine") == pytest.approx(1.0)
    assert learning_rate(10, 100, 1.0, 10, "cosine") == pytest.approx(1.0)
    assert learning_rate(55, 100, 1.0, 10, "cosine") == pytest.approx(0.5)
    assert learning_rate(55, 100, 1.0, 10, "linear") == pytest.approx(0.5)
    assert learning_rate(99, 100, 1.0, 0, "constant") == 1.0


def optimizer_of(network, **changes):
    return Optimizer(network, load("configs/smoke.yaml").ldm.model_copy(update=changes))


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_remembered(kind):
    network = nn.Conv2d(16, 16, 3)
    optimizer = optimizer_of(network, optimizer=kind, weight_decay=0.5)
    assert (optimizer.muon is not None) == (kind == "muon")

    def moments() -> list[torch.Tensor]:
        of_adam = [state["exp_avg"].clone() for state in optimizer.adam.state.values()]
        return of_adam + ([m.clone() for m in optimizer.muon.momenta] if optimizer.muon else [])

    x = torch.ones(1, 16, 3, 3)
    optimizer.update(network(x).sum(), 0)
    before, kept = [p.clone() for p in network.parameters()], moments()
    optimizer.update(network(x).sum() * float("nan"), 1)
    optimizer.update(network(x).sum() * float("inf"), 2)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert len(kept) == 2
    assert all(torch.equal(a, b) for a, b in zip(kept, moments(), strict=True))
    assert first_bad_step([optimizer]) == 1


def test_clipping_bounds_the_step_and_reports_the_norm_before():
    network = nn.Linear(2, 1, bias=False)
    norm = optimizer_of(network, clip=0.5).update(network(torch.tensor([[3.0, 4.0]])).sum(), 0)
    assert norm.item() == pytest.approx(5.0)


def test_what_adam_averages_is_the_clipped_gradient_with_its_own_betas():
    network = nn.Linear(2, 1, bias=False)
    optimizer = optimizer_of(network, clip=0.5, betas=(0.8, 0.9))
    optimizer.update(network(torch.tensor([[3.0, 4.0]])).sum(), 0)
    (state,) = optimizer.adam.state.values()
    torch.testing.assert_close(state["exp_avg"], torch.tensor([[0.3, 0.4]]) * 0.2)
    torch.testing.assert_close(state["exp_avg_sq"], torch.tensor([[0.09, 0.16]]) * 0.1)


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_weights_decay_and_biases_do_not(kind):
    network = nn.Conv2d(16, 16, 3)
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = optimizer_of(network, optimizer=kind, learning_rate=0.125, weight_decay=0.5)
    optimizer.update(network(torch.ones(1, 16, 3, 3)).sum() * 0, 0)
    torch.testing.assert_close(network.weight.detach(), before[0] * (1 - 0.125 * 0.5))
    assert torch.equal(network.bias.detach(), before[1])


def test_the_first_bad_step_is_that_of_any_network():
    made = [optimizer_of(nn.Linear(2, 1)) for _ in range(3)]
    for optimizer, step in zip(made, (-1, 7, 4), strict=True):
        optimizer.bad_step.fill_(step)
    assert (first_bad_step(made), first_bad_step(made[:1])) == (4, None)


def test_only_its_own_network_gets_gradients():
    mine, other = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizer_of(mine).update(other(mine(torch.ones(1, 2))).sum(), 0)
    assert all(p.grad is None for p in other.parameters())


def test_the_factor_scales_the_step():
    """Adam's first step equals the rate for any gradient."""
    for factor in (1.0, 0.5):
        network = nn.Linear(2, 1, bias=False)
        before, optimizer = network.weight.detach().clone(), optimizer_of(network, learning_rate=0.125)
        optimizer.factor = factor
        optimizer.update(network(torch.ones(1, 2)).sum(), 0)
        torch.testing.assert_close(before - network.weight.detach(), torch.full((1, 2), 0.125 * factor))
