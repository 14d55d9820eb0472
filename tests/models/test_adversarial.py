import pytest
import torch
from torch import nn

from models.adversarial import LOSSES, gradient_penalty


class LinearCritic(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x, labels):
        return (x * self.weight).flatten(1).sum(1), None


@pytest.mark.parametrize("norm", [0.5, 1.0, 3.0])
def test_penalty_of_a_linear_critic_has_a_closed_form(norm):
    """D(x) = <w, x>: the gradient is w everywhere, the penalty (|w| - 1)^2, its gradient 2 (|w| - 1) w / |w|."""
    weight = torch.randn(3, 4, 4)
    weight = weight / weight.norm() * norm
    critic = LinearCritic(weight)
    real, fake, mix = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4), torch.rand(5, 1, 1, 1)
    penalty, slope = gradient_penalty(critic, real, fake, torch.zeros(5, 2), mix)
    assert penalty.item() == pytest.approx((norm - 1) ** 2, abs=1e-5)
    assert slope.item() == pytest.approx(norm, rel=1e-5)
    penalty.backward()
    torch.testing.assert_close(critic.weight.grad, 2 * (norm - 1) * weight / norm, atol=1e-4, rtol=1e-4)


def test_penalty_of_a_flat_critic_has_a_finite_gradient():
    critic = LinearCritic(torch.zeros(3, 4, 4))
    penalty, _ = gradient_penalty(
        critic, torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.zeros(2, 2), torch.rand(2, 1, 1, 1)
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
    ],
)
def test_losses_by_hand(name, critic, generator):
    loss = LOSSES[name]
    assert loss.critic(REAL, FAKE).item() == pytest.approx(critic, abs=1e-5)
    assert loss.generator(FAKE).item() == pytest.approx(generator, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_pulls_real_scores_up_fake_ones_down_and_the_generator_up(name):
    real, fake = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    LOSSES[name].critic(real + 0.5, fake + 0.5).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()
    made = torch.zeros(3, requires_grad=True)
    LOSSES[name].generator(made).backward()
    assert (made.grad < 0).all()
