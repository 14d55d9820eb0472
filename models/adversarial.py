"""Adversarial losses on scores, and the gradient penalty. Scores may be of any shape; every loss is a mean."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AdversarialLoss:
    """critic(real scores, fake scores) and generator(fake scores) are minimised.

    `penalised`: the gradient penalty belongs to it; `clipped`: the critic's weights are clipped after each update.
    """

    critic: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    penalised: bool = False
    clipped: bool = False


def _gap(real: Tensor, fake: Tensor) -> Tensor:
    """E[D(fake)] - E[D(real)]: minus the Wasserstein estimate."""
    return fake.mean() - real.mean()


def _minus(fake: Tensor) -> Tensor:
    return -fake.mean()


# of the generator's classification loss, over the share of the run that is done
AUXILIARY_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "rising": lambda done: done,
    "falling": lambda done: 1 - done,
}

LOSSES = {
    # arXiv 1704.00028
    "wgan-gp": AdversarialLoss(_gap, _minus, penalised=True),
    # arXiv 1701.07875
    "wgan": AdversarialLoss(_gap, _minus, clipped=True),
    # arXiv 1705.02894, halved
    "hinge": AdversarialLoss(lambda real, fake: 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean()), _minus),
    # arXiv 1406.2661, section 3, in logits
    "non-saturating": AdversarialLoss(
        lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(), lambda fake: F.softplus(-fake).mean()
    ),
    # arXiv 1611.04076, eq. 9
    "lsgan": AdversarialLoss(
        lambda real, fake: 0.5 * ((real - 1).square().mean() + fake.square().mean()),
        lambda fake: 0.5 * (fake - 1).square().mean(),
    ),
}


def gradient_penalty(critic, real: Tensor, fake: Tensor, labels: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
    """E[(|grad_x D(x, y)| - 1)^2] between pairs that share their labels (arXiv 1704.00028, eq. 3), and the mean norm.

    real, fake: (b, c, h, w); mix: (b, 1, 1, 1) in [0, 1]. Norms are of float32 gradients; under autocast the critic's
    layers, and what differentiates them twice, run in bfloat16 (of float16 the gradients would need scaling).
    """
    x = (mix * real + (1 - mix) * fake).detach().requires_grad_()
    scores = critic(x, labels)[0]
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    norms = gradient.flatten(1).norm(dim=1)
    return (norms - 1).square().mean(), norms.mean()
