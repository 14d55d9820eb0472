import pytest
import torch
from torch import nn

from models.adversarial import (
    AUXILIARY_SCHEDULES,
    LOSSES,
    CriticWeights,
    auxiliary_loss,
    contrastive_loss,
    critic_loss,
    gradient_penalty,
    zero_centred_penalties,
)
from models.condition import Condition, cell_labels, cell_loss

NOTHING = Condition.of_lists([[]], 2)


class LinearCritic(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x, condition):
        return (x * self.weight).flatten(1).sum(1), None


@pytest.mark.parametrize("norm", [0.5, 1.0, 3.0])
def test_penalty_of_a_linear_critic_has_a_closed_form(norm):
    """D(x) = <w, x>: the gradient is w everywhere, the penalty (|w| - 1)^2, its gradient 2 (|w| - 1) w / |w|."""
    weight = torch.randn(3, 4, 4)
    weight = weight / weight.norm() * norm
    critic = LinearCritic(weight)
    real, fake, mix = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4), torch.rand(5, 1, 1, 1)
    penalty, slope = gradient_penalty(critic, real, fake, NOTHING, mix)
    assert penalty.item() == pytest.approx((norm - 1) ** 2, abs=1e-5)
    assert slope.item() == pytest.approx(norm, rel=1e-5)
    penalty.backward()
    torch.testing.assert_close(critic.weight.grad, 2 * (norm - 1) * weight / norm, atol=1e-4, rtol=1e-4)


def test_penalty_of_a_flat_critic_has_a_finite_gradient():
    critic = LinearCritic(torch.zeros(3, 4, 4))
    penalty, _ = gradient_penalty(
        critic, torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), NOTHING, torch.rand(2, 1, 1, 1)
    )
    penalty.backward()
    assert penalty.item() == pytest.approx(1.0)
    assert critic.weight.grad.isfinite().all()


REAL, FAKE = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.0])


@pytest.mark.parametrize(
    ("name", "critic", "generator"),
    [
        ("wgan-gp", -2.0, 1.0),
        ("wgan", -2.0, 1.0),
        ("hinge", 0.5, 1.0),
        ("lsgan", 0.5 * (1 + 2), 0.5 * 5),
        ("non-saturating", 0.126928 + 0.693147, 0.5 * (2.126928 + 0.693147)),  # softplus at -2, 0 and 2
        ("r3gan", 0.5 * (0.018150 + 0.693147), 0.5 * (4.018150 + 0.693147)),  # of pairs: softplus at -4, 0 and 4
    ],
)
def test_losses_by_hand(name, critic, generator):
    loss = LOSSES[name]
    assert loss.critic(REAL, FAKE).item() == pytest.approx(critic, abs=1e-5)
    assert loss.generator(FAKE, REAL if loss.paired else None).item() == pytest.approx(generator, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_pulls_real_scores_up_fake_ones_down_and_the_generator_up(name):
    real, fake = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    LOSSES[name].critic(real + 0.5, fake + 0.5).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()
    made = torch.zeros(3, requires_grad=True)
    LOSSES[name].generator(made, torch.zeros(3) if LOSSES[name].paired else None).backward()
    assert (made.grad < 0).all()


def test_zero_centred_penalties_of_a_linear_critic_are_twice_its_squared_norm():
    critic = LinearCritic(torch.full((3, 4, 4), 0.5))
    found = zero_centred_penalties(critic, torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), NOTHING)
    assert found.item() == pytest.approx(2 * 48 * 0.25)
    found.backward()
    torch.testing.assert_close(critic.weight.grad, torch.full((3, 4, 4), 2.0))  # 2 x 2 w


def test_the_label_loss_is_over_the_set_or_over_the_cells():
    condition = Condition.of_lists([[0, 1], [1]], 2, [[(0.2, 0.2), (0.7, 0.7)], [(0.5, 0.5)]])
    logits, cells = torch.tensor([[2.0, -1.0], [0.5, 0.0]]), torch.randn(2, 3, 8, 8)
    expected = torch.nn.functional.softplus(torch.tensor([-2.0, 1.0, 0.5, 0.0])).sum() / 2 / 24
    torch.testing.assert_close(auxiliary_loss(logits, condition), expected)
    assert auxiliary_loss(cells, condition) == cell_loss(cells, cell_labels(condition, 8))


def test_the_contrastive_loss_chooses_the_right_set_among_others():
    """By hand: set logits are sums of evidence over labels, and a set that equals the picture's own is left out."""
    evidence, labels = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1.0, 0.0, 1.0]])
    others = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    expected = torch.tensor([2.5, -1.0, 1.0]).logsumexp(0) - 2.5
    torch.testing.assert_close(contrastive_loss(evidence, labels, others), expected)
    assert contrastive_loss(evidence, labels, labels) == 0, "there is no other set to choose"
    condition = Condition.of_lists([[0, 2]], 3)
    assert auxiliary_loss(evidence, condition, others=others) == contrastive_loss(evidence, labels, others)
    assert auxiliary_loss(evidence, condition) != contrastive_loss(evidence, labels, others)


class SquareCritic(nn.Module):
    """D(x) = |x|^2 / 2, whose gradient is x; its logits are the sums of the rows."""

    def forward(self, x, condition):
        return x.square().flatten(1).sum(1) / 2, x.flatten(1).sum(1, keepdim=True)


def pairs(count=4):
    torch.manual_seed(0)
    return torch.randn(count, 3, 2, 2), 3 * torch.randn(count, 3, 2, 2), torch.rand(count, 1, 1, 1)


def test_the_penalty_is_measured_between_each_pair():
    real, fake, mix = pairs()
    fake.requires_grad_()
    penalty, slope = gradient_penalty(SquareCritic(), real, fake, NOTHING, mix)
    norms = (mix * real + (1 - mix) * fake).flatten(1).norm(dim=1)
    torch.testing.assert_close(slope, norms.mean())
    torch.testing.assert_close(penalty, (norms - 1).square().mean())
    penalty.backward()
    assert fake.grad is None, "the generator does not learn from it"


def test_zero_centred_penalties_are_of_real_and_of_generated_rows():
    real, fake, _ = pairs()
    found = zero_centred_penalties(SquareCritic(), real, fake, NOTHING)
    torch.testing.assert_close(found, (real.square() + fake.square()).flatten(1).sum(1).mean())


@pytest.mark.parametrize("name", ["wgan-gp", "r3gan", "hinge"])
def test_a_critics_loss_is_the_weighted_sum_of_its_terms(name):
    real, fake, mix = pairs()
    loss, weights, critic = LOSSES[name], CriticWeights(7.0, 0.4, 3.0), SquareCritic()

    def of_labels(logits, condition):
        return logits.square().sum()

    total, terms = critic_loss(loss, critic, real, fake, NOTHING.repeat(4), weights, of_labels, mix, penalised=2)
    of_real, of_fake = critic(real, None)[0], critic(fake, None)[0]
    wanted = loss.critic(of_real, of_fake) + 3.0 * real.flatten(1).sum(1).square().sum()
    if loss.penalised:
        wanted = wanted + 7.0 * gradient_penalty(critic, real[:2], fake[:2], NOTHING, mix[:2])[0]
    if loss.zero_centred:
        wanted = wanted + 0.2 * zero_centred_penalties(critic, real[:2], fake[:2], NOTHING)
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(terms["gap"], of_real.mean() - of_fake.mean())
    assert ("penalty" in terms) == (loss.penalised or loss.zero_centred)


def test_the_label_loss_may_rise_or_fall():
    assert [AUXILIARY_SCHEDULES[name](0.25) for name in ("constant", "rising", "falling")] == [1.0, 0.25, 0.75]
