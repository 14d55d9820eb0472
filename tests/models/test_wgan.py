import pytest
import torch
from torch import nn

from models.wgan import Critic, Generator, gradient_penalty, wasserstein_critic_loss


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


def test_wasserstein_loss_is_minus_the_gap():
    assert wasserstein_critic_loss(torch.tensor([3.0, 5.0]), torch.tensor([1.0, 1.0])).item() == -3.0


@pytest.mark.parametrize("pool", ["flatten", "sum"])
def test_the_score_depends_on_the_label(pool):
    torch.manual_seed(0)
    critic = Critic(24, 3, 64, (8, 8, 8, 8, 8), pool, auxiliary=False)
    images = torch.randn(4, 3, 64, 64)
    first, second = torch.eye(24)[:4], torch.eye(24)[4:8]
    assert (critic(images, first)[0] - critic(images, second)[0]).abs().min() > 1e-4


@pytest.mark.parametrize(
    ("size", "outputs", "channels"), [(64, 3, (16, 16, 8, 8, 8)), (32, 12, (16, 8, 8, 8)), (8, 6, (16, 16, 16))]
)
@pytest.mark.parametrize("condition", ["concatenation", "modulation"])
def test_generator_shapes_and_its_use_of_labels(size, outputs, channels, condition):
    torch.manual_seed(0)
    generator = Generator(24, outputs, size, 64, channels, 8, condition, bounded=True)
    noise = torch.randn(2, 64)
    images = generator(noise, torch.eye(24)[:2])
    assert images.shape == (2, outputs, size, size)
    assert images.abs().max() <= 1
    assert not torch.allclose(images, generator(noise, torch.eye(24)[2:4]))


def test_auxiliary_head_classifies_every_label():
    logits = Critic(24, 6, 8, (8, 8), "sum", auxiliary=True)(torch.randn(3, 6, 8, 8), torch.zeros(3, 24))[1]
    assert logits.shape == (3, 24)


def test_too_few_widths_are_refused():
    with pytest.raises(ValueError, match="needs at least 5"):
        Generator(24, 3, 64, 64, (8, 8), 8, "concatenation", bounded=True)
    with pytest.raises(ValueError, match="needs at least 5"):
        Critic(24, 3, 64, (8, 8), "sum", auxiliary=False)
