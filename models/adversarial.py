"""Adversarial losses on scores, gradient penalties, and the loss on labels. Every loss is a mean."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.condition import Condition, cell_labels, cell_loss, label_loss

Critic = Callable[[Tensor, Condition], tuple[Tensor, Tensor | None]]  # gives scores (b,), and logits or None
LabelLoss = Callable[[Tensor, Condition], Tensor]  # of a critic's logits


@dataclass(frozen=True)
class AdversarialLoss:
    """A pair of losses to minimise: critic(real scores, fake scores) and generator(fake scores, real scores).

    `penalised`: the gradient penalty is added; `zero_centred`: R1 and R2 are; `clipped`: the critic's weights are
    clipped after each update. `paired`: the generator's loss takes real scores too; otherwise it is given None.
    """

    critic: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor | None], Tensor]
    penalised: bool = False
    clipped: bool = False
    zero_centred: bool = False
    paired: bool = False


def _gap(real: Tensor, fake: Tensor) -> Tensor:
    """Returns E[D(fake)] - E[D(real)], the negative Wasserstein estimate."""
    return fake.mean() - real.mean()


def _minus(fake: Tensor, real: Tensor | None) -> Tensor:
    return -fake.mean()


def _relativistic(worse: Tensor, better: Tensor) -> Tensor:
    """Returns E[softplus(worse - better)] over pairs."""
    return F.softplus(worse - better).mean()


def _relativistic_generator(fake: Tensor, real: Tensor | None) -> Tensor:
    assert real is not None  # the loss is `paired`
    return _relativistic(real, fake)


# factor of the generator's label loss as a function of the share of the run that is done
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
        lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
        lambda fake, real: F.softplus(-fake).mean(),
    ),
    # arXiv 1611.04076, eq. 9
    "lsgan": AdversarialLoss(
        lambda real, fake: 0.5 * ((real - 1).square().mean() + fake.square().mean()),
        lambda fake, real: 0.5 * (fake - 1).square().mean(),
    ),
    # arXiv 2501.05441 (R3GAN): relativistic pairs, zero-centred penalties on both
    "r3gan": AdversarialLoss(
        lambda real, fake: _relativistic(fake, real),
        _relativistic_generator,
        zero_centred=True,
        paired=True,
    ),
}


@dataclass(frozen=True)
class CriticWeights:
    """Weights of the terms of a critic's loss: gradient penalty, zero-centred penalties, label loss."""

    penalty: float = 10.0  # lambda of arXiv 1704.00028
    gamma: float = 0.05  # gamma of arXiv 2501.05441; half of it weighs the penalties
    auxiliary: float = 1.0


def critic_loss(
    loss: AdversarialLoss,
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    condition: Condition,
    weights: CriticWeights,
    of_labels: LabelLoss,
    mix: Tensor | None = None,
    penalised: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the critic's loss on real and generated x (b, c, h, w) each, and its terms by name.

    `of_labels`: the loss on the critic's logits, if it has any. `mix` (b, 1, 1, 1) in [0, 1] is for a loss with a
    gradient penalty. `penalised`: the penalties are measured on so many of the first rows (default: all). Terms: `gap`,
    and where the loss has them `penalty`, `slope` and `auxiliary`.
    """
    scores, logits = critic(torch.cat([real, fake]), condition.repeat(2))
    real_scores, fake_scores = scores.chunk(2)
    terms = {"gap": real_scores.mean() - fake_scores.mean()}
    total, rows = loss.critic(real_scores, fake_scores), slice(penalised)
    if loss.penalised:
        assert mix is not None
        of_penalty = real[rows], fake[rows], condition[rows], mix[rows]
        terms["penalty"], terms["slope"] = gradient_penalty(critic, *of_penalty)
        total = total + weights.penalty * terms["penalty"]
    elif loss.zero_centred:
        terms["penalty"] = zero_centred_penalties(critic, real[rows], fake[rows], condition[rows])
        total = total + weights.gamma / 2 * terms["penalty"]
    if logits is not None:
        terms["auxiliary"] = of_labels(logits[: len(real)], condition)
        total = total + weights.auxiliary * terms["auxiliary"]
    return total, terms


def auxiliary_loss(
    logits: Tensor,
    condition: Condition,
    average: Callable[[Tensor], Tensor] = lambda value: value,
    others: Tensor | None = None,
) -> Tensor:
    """Returns a critic's label loss: of the set for logits (b, classes), of cells for (b, classes + 1, side, side).

    `average`: as `cell_loss` takes it. `others`: label sets (n, classes) to contrast the picture's own with; the logits
    are then what each label adds to the score.
    """
    if logits.ndim == 4:
        return cell_loss(logits, cell_labels(condition, logits.shape[-1]), average)
    if others is not None:
        return contrastive_loss(logits, condition.labels, others)
    return label_loss(logits, condition.labels)


def contrastive_loss(evidence: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """Returns the cross-entropy of choosing each picture's label set among other sets, the mean over pictures.

    A set's logit is the sum of `evidence` (b, classes) over its labels. labels (b, classes) and others (n, classes) are
    multi-hot; a set among `others` that equals the picture's own is no other, one that is there twice counts twice.

    This is the loss between pictures and sentences of arXiv 2101.04702, with a projection in place of the cosine: so a
    critic's own score learns. By the Wasserstein loss alone it hardly needs labels to tell real pictures from generated
    ones.
    """
    same = (labels[:, None] == others).all(dim=2)
    with torch.autocast(evidence.device.type, enabled=False):  # bfloat16 would round what is compared
        evidence = evidence.float()
        right = (evidence * labels).sum(1, keepdim=True)
        wrong = (evidence @ others.T).masked_fill(same, float("-inf"))
        return (torch.cat([right, wrong], dim=1).logsumexp(1) - right[:, 0]).mean()


def gradient_penalty(
    critic: Critic, real: Tensor, fake: Tensor, condition: Condition, mix: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns E[(|grad_x D(x, y)| - 1)^2] between pairs of one condition (arXiv 1704.00028, eq. 3) and the mean norm.

    real, fake: (b, c, h, w); mix: (b, 1, 1, 1) in [0, 1]. Norms are of float32 gradients; under autocast the critic's
    layers, and what differentiates them twice, run in bfloat16 (of float16 the gradients would need scaling).
    """
    x = (mix * real + (1 - mix) * fake).detach().requires_grad_()
    norms = _slopes(critic, x, condition).norm(dim=1)
    return (norms - 1).square().mean(), norms.mean()


def zero_centred_penalties(critic: Critic, real: Tensor, fake: Tensor, condition: Condition) -> Tensor:
    """Returns R1 + R2, E[|grad_x D(x, y)|^2] on real and generated x (b, c, h, w) (arXiv 1801.04406, eq. 9 and 10)."""

    def penalty(x: Tensor) -> Tensor:
        return _slopes(critic, x.detach().requires_grad_(), condition).square().sum(dim=1).mean()

    return penalty(real) + penalty(fake)


def _slopes(critic: Critic, x: Tensor, condition: Condition) -> Tensor:
    """Returns grad_x D(x, y) as (b, numbers); it can be differentiated again."""
    (gradient,) = torch.autograd.grad(critic(x, condition)[0].sum(), x, create_graph=True)
    return gradient.flatten(1)
