"""Ancestral sampling, DDIM and DPM-Solver++; guidance with and without a classifier, as wrappers of the denoiser.

A *denoiser* is a callable (x_t (b, c, h, w), t (b,) int64) -> the network's prediction (b, c, h, w). A *score* is one
-> the gradient of log p(y | x_t) by x_t, (b, c, h, w). All samplers yield (t, x after the step, predicted x_0).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.diffusion import VANISHED, Diffusion

Denoiser = Callable[[Tensor, Tensor], Tensor]
Score = Callable[[Tensor, Tensor], Tensor]


def _trailing(timesteps: int, steps: int) -> list[int]:
    """Evenly from the noisy end (arXiv 2305.08891, 3.3)."""
    return [round(timesteps * (1 - i / steps)) - 1 for i in range(steps)]


def _end_to_end(power: int) -> Callable[[int, int], list[int]]:
    """T - 1 and 0 among them, as a power of even places: 2 is dense where little noise is left.

    After arXiv 2010.02502, appendix D.2, whose own floor(c i) leaves the noisy end out.
    """

    def times(timesteps: int, steps: int) -> list[int]:
        places = [1.0] if steps == 1 else [1 - i / (steps - 1) for i in range(steps)]
        return [round((timesteps - 1) * place**power) for place in places]

    return times


SPACINGS = {"trailing": _trailing, "uniform": _end_to_end(1), "quadratic": _end_to_end(2)}


def spaced_timesteps(timesteps: int, steps: int, spacing: str = "trailing") -> list[int]:
    """Up to `steps` timesteps from T - 1 down, none twice, by one of SPACINGS."""
    return list(dict.fromkeys(max(0, t) for t in SPACINGS[spacing](timesteps, steps)))


def usable_timesteps(diffusion: Diffusion) -> int:
    """How many timesteps sampling may use, from the clean end.

    With noise or mean prediction it begins where abar is 0.001: nearer to T alpha all but vanishes, and
    x_0 = (x - sigma eps) / alpha would blow up any error of the network, several hundred times at T - 1.
    """
    if diffusion.prediction in ("noise", "mean"):
        return max(1, int((diffusion.alpha_bar >= VANISHED).sum()))
    return len(diffusion)


def _ancestral_timesteps(diffusion: Diffusion) -> int:
    """All of them, or with noise or mean prediction those that are well posed."""
    if diffusion.prediction not in ("noise", "mean"):
        return len(diffusion)
    return max(1, int(diffusion.well_posed().sum()))


def sampling_timesteps(diffusion: Diffusion, steps: int, spacing: str = "trailing") -> list[int]:
    """The timesteps DDIM visits, falling, none twice."""
    return spaced_timesteps(usable_timesteps(diffusion), steps, spacing)


def ddim(
    denoiser: Denoiser,
    diffusion: Diffusion,
    noise: Tensor,
    steps: int,
    eta: float = 0.0,
    draw_noise: Callable[[], Tensor] | None = None,
    spacing: str = "trailing",
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """DDIM (arXiv 2010.02502, eq. 12 and 16) from `noise` (b, c, h, w).

    The step before the last of the list is the list's own next timestep, and after its end abar is 1, so the last
    x equals the predicted x_0. eta > 0 asks `draw_noise` for fresh noise at every step.
    """
    x = noise
    times = sampling_timesteps(diffusion, steps, spacing)
    for t, following in zip(times, [*times[1:], None], strict=True):
        index = torch.full((len(x),), t, device=x.device)
        x0, eps = diffusion.to_x0_and_noise(denoiser(x, index), x, index)
        here = diffusion.alpha_bar[t]
        there = torch.ones_like(here) if following is None else diffusion.alpha_bar[following]
        sigma = eta * ((1 - there) / (1 - here) * (1 - here / there)).sqrt()
        direction = (1 - there - sigma.square()).clamp(min=0).sqrt()
        x = there.sqrt().float() * x0 + direction.float() * eps
        if eta > 0 and following is not None:
            x = x + sigma.float() * draw_noise()
        yield t, x, x0


def dpm_solver(
    denoiser: Denoiser, diffusion: Diffusion, noise: Tensor, steps: int, spacing: str = "trailing"
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """DPM-Solver++(2M), deterministic (arXiv 2211.01095, algorithm 2): DDIM that also looks at the step before.

    With lambda = log(alpha / sigma) and h its growth over a step, x_0 is extrapolated linearly in lambda from the last
    two predictions. The first step and the last, which ends at sigma = 0, are DDIM's.
    """
    x, before = noise, None  # `before`: the last step's x_0 and h
    times = sampling_timesteps(diffusion, steps, spacing)
    for t, following in zip(times, [*times[1:], None], strict=True):
        index = torch.full((len(x),), t, device=x.device)
        x0, _ = diffusion.to_x0_and_noise(denoiser(x, index), x, index)
        if following is None:
            yield t, x0, x0
            return
        here, there = diffusion.alpha_bar[t], diffusion.alpha_bar[following]
        h = 0.5 * ((there / (1 - there)).log() - (here / (1 - here)).log())
        extrapolated = x0
        if before is not None and h.isfinite():
            share = (h / (2 * before[1])).float()  # 1 / (2 r), r = h_before / h
            extrapolated = x0 + share * (x0 - before[0])
        ratio = ((1 - there) / (1 - here)).sqrt()
        x = ratio.float() * x + (there.sqrt() * (1 - (-h).exp())).float() * extrapolated
        before = (x0, h) if h.isfinite() else None
        yield t, x, x0


def ancestral(
    denoiser: Denoiser,
    diffusion: Diffusion,
    noise: Tensor,
    draw_noise: Callable[[], Tensor],
    score: Score | None = None,
    clip: float | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """DDPM's sampler, every timestep, with the posterior's variance (arXiv 2006.11239, algorithm 2).

    With a `score` each mean is shifted by variance x score: classifier guidance (arXiv 2105.05233, algorithm 1).
    `clip` bounds the predicted x_0, for pictures.
    """
    x = noise
    for t in range(_ancestral_timesteps(diffusion) - 1, -1, -1):
        index = torch.full((len(x),), t, device=x.device)
        x0, _ = diffusion.to_x0_and_noise(denoiser(x, index), x, index)
        x0 = x0 if clip is None else x0.clamp(-clip, clip)
        of_x0, of_xt, variance = (v[0] for v in diffusion.posterior(index[:1]))
        mean = of_x0.float() * x0 + of_xt.float() * x
        if score is not None and t > 0 and diffusion.alpha_bar[t] >= VANISHED:
            mean = mean + variance.float() * score(x, index)
        x = mean + variance.sqrt().float() * draw_noise() if t > 0 else mean
        yield t, x, x0


def guided(
    conditional: Denoiser,
    unconditional: Denoiser,
    both: Denoiser,
    scale: float,
    timesteps: int,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Denoiser:
    """Classifier-free guidance: u + scale (c - u) (arXiv 2207.12598), within an interval of t / T (arXiv 2404.07724).

    `both` computes conditional and unconditional predictions of one x in one pass, concatenated. Outside the
    interval, and at scale 1, only the conditional is computed; at scale 0 only the unconditional.
    """
    low, high = interval

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        if scale == 0:
            return unconditional(x, t)
        if scale == 1 or not low <= (t[0].item() + 1) / timesteps <= high:
            return conditional(x, t)
        c, u = both(x, t).chunk(2)
        return u + scale * (c - u)

    return denoise


def score_of(log_probability: Callable[[Tensor, Tensor], Tensor], scale: float) -> Score:
    """scale times the gradient of a classifier's log p(y | x_t), given as (x_t, t) -> (b,)."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_probability(x, t).sum(), x)
        return scale * gradient

    return score


def score_guided(denoiser: Denoiser, diffusion: Diffusion, score: Score) -> Denoiser:
    """Classifier guidance for DDIM: eps - sigma_t score, in what the network predicts (arXiv 2105.05233, alg. 2).

    Not where abar is below 0.001, for there a change of eps changes x_0 without measure.
    """

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        prediction = denoiser(x, t)
        if diffusion.alpha_bar[t[0]] < VANISHED:
            return prediction
        _, eps = diffusion.to_x0_and_noise(prediction, x, t)
        alpha, sigma = diffusion.scales(t)
        eps = eps - sigma * score(x, t)
        return diffusion.target((x - sigma * eps) / alpha, eps, t)

    return denoise


@dataclass(frozen=True)
class Sampler:
    """run(denoiser, diffusion, draw_noise, score or None, steps=, spacing=, eta=, clip=): each takes what it needs.

    `every_timestep`: it takes no number of steps.
    """

    run: Callable[..., Iterator[tuple[int, Tensor, Tensor]]]
    every_timestep: bool = False


def _ddim(denoiser, diffusion, draw, score, *, steps, spacing, eta, **unused):
    denoiser = score_guided(denoiser, diffusion, score) if score else denoiser
    return ddim(denoiser, diffusion, draw(), steps, eta, draw, spacing)


def _dpm_solver(denoiser, diffusion, draw, score, *, steps, spacing, **unused):
    denoiser = score_guided(denoiser, diffusion, score) if score else denoiser
    return dpm_solver(denoiser, diffusion, draw(), steps, spacing)


def _ancestral(denoiser, diffusion, draw, score, *, clip, **unused):
    return ancestral(denoiser, diffusion, draw(), draw, score, clip)


SAMPLERS = {
    "ddim": Sampler(_ddim),
    "dpm-solver++": Sampler(_dpm_solver),
    "ancestral": Sampler(_ancestral, every_timestep=True),  # DDPM's
}
