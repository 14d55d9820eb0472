"""DDIM, DPM-Solver++ and ancestral sampling; guidance with and without a classifier, as wrappers of the denoiser.

A *denoiser* maps x_t (b, c, h, w) and t to the network's prediction (b, c, h, w). A *score* maps them to the same
prediction and to the gradient of log p(y | x_t) by x_t, (b, c, h, w), from one evaluation of the network. Here t is an
int, and what follows from it is computed on the host, so that a sampling never waits for the device.

Every solver takes (denoiser, diffusion, noise, times) and yields (t, x after the step, predicted x_0) for each of the
falling timesteps `times`, so that schedule and solver combine freely. Further options are in SAMPLERS.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.diffusion import VANISHED, Diffusion

Denoiser = Callable[[Tensor, int], Tensor]
Score = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def _trailing(timesteps: int, steps: int) -> list[int]:
    """Returns evenly spaced timesteps from the noisy end (arXiv 2305.08891, section 3.3)."""
    return [round(timesteps * (1 - i / steps)) - 1 for i in range(steps)]


def _end_to_end(power: int) -> Callable[[int, int], list[int]]:
    """Spaces timesteps from T - 1 to 0 by a power of even fractions: 2 is dense where little noise is left.

    After arXiv 2010.02502, appendix D.2, whose own floor(c i) leaves out the noisy end.
    """

    def times(timesteps: int, steps: int) -> list[int]:
        places = [1.0] if steps == 1 else [1 - i / (steps - 1) for i in range(steps)]
        return [round((timesteps - 1) * place**power) for place in places]

    return times


SPACINGS = {"trailing": _trailing, "uniform": _end_to_end(1), "quadratic": _end_to_end(2)}


def spaced_timesteps(timesteps: int, steps: int, spacing: str = "trailing") -> list[int]:
    """Returns up to `steps` timesteps, falling from T - 1, none twice. `spacing` is one of SPACINGS."""
    return list(dict.fromkeys(max(0, t) for t in SPACINGS[spacing](timesteps, steps)))


def usable_timesteps(diffusion: Diffusion) -> int:
    """Returns how many timesteps sampling may use, counted from the clean end.

    With noise or mean prediction it starts where abar is 0.001: nearer to T, alpha almost vanishes, and
    x_0 = (x - sigma eps) / alpha would amplify an error of the network several hundred times.
    """
    if diffusion.prediction in ("noise", "mean"):
        return max(1, int((diffusion.alpha_bar >= VANISHED).sum()))
    return len(diffusion)


def every_timestep(diffusion: Diffusion) -> list[int]:
    """Returns all timesteps, falling; with noise or mean prediction only those that are well posed."""
    last = len(diffusion)
    if diffusion.prediction in ("noise", "mean"):
        last = max(1, int(diffusion.well_posed().sum()))
    return [*range(last - 1, -1, -1)]


def sampling_timesteps(diffusion: Diffusion, steps: int, spacing: str = "trailing") -> list[int]:
    """Returns the timesteps that a solver with `steps` steps visits, falling, none twice."""
    return spaced_timesteps(usable_timesteps(diffusion), steps, spacing)


def ddim(
    denoiser: Denoiser,
    diffusion: Diffusion,
    noise: Tensor,
    times: list[int],
    eta: float = 0.0,
    draw_noise: Callable[[], Tensor] | None = None,
    score: Score | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Samples by DDIM (arXiv 2010.02502, eq. 12 and 16) from `noise` (b, c, h, w).

    Each step goes to the next timestep in `times`; after the last, abar is 1, so the last x is the predicted x_0.
    eta > 0 calls `draw_noise` for fresh noise at every step. A `score` guides as in `score_guided`.
    """
    x, denoiser = noise, score_guided(denoiser, diffusion, score) if score else denoiser
    for t, following in zip(times, [*times[1:], None], strict=True):
        x0, eps = diffusion.to_x0_and_noise(denoiser(x, t), x, t)
        here = diffusion.alpha_bar[t]
        there = torch.ones_like(here) if following is None else diffusion.alpha_bar[following]
        sigma = eta * ((1 - there) / (1 - here) * (1 - here / there)).sqrt()
        direction = (1 - there - sigma.square()).clamp(min=0).sqrt()
        x = there.sqrt().float() * x0 + direction.float() * eps
        if eta > 0 and following is not None:
            assert draw_noise is not None
            x = x + sigma.float() * draw_noise()
        yield t, x, x0


def dpm_solver(
    denoiser: Denoiser, diffusion: Diffusion, noise: Tensor, times: list[int], score: Score | None = None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Samples by DPM-Solver++(2M), deterministic (arXiv 2211.01095, algorithm 2).

    With lambda = log(alpha / sigma) and h its growth over a step, x_0 is extrapolated linearly in lambda from the last
    two predictions. The first step and the last, which ends at sigma = 0, are DDIM's. A `score` guides as in
    `score_guided`.
    """
    x, denoiser = noise, score_guided(denoiser, diffusion, score) if score else denoiser
    before = None  # the previous step's x_0 and h
    for t, following in zip(times, [*times[1:], None], strict=True):
        x0, _ = diffusion.to_x0_and_noise(denoiser(x, t), x, t)
        if following is None:
            yield t, x0, x0
            return
        here, there = diffusion.alpha_bar[t], diffusion.alpha_bar[following]
        h = 0.5 * ((there / (1 - there)).log() - (here / (1 - here)).log())
        extrapolated = x0
        if before is not None:
            share = (h / (2 * before[1])).float()  # 1 / (2 r), r = h_before / h; 0 after a step from pure noise
            extrapolated = x0 + share * (x0 - before[0])
        ratio = ((1 - there) / (1 - here)).sqrt()
        x = ratio.float() * x + (there.sqrt() * (1 - (-h).exp())).float() * extrapolated
        before = (x0, h)
        yield t, x, x0


def ancestral(
    denoiser: Denoiser,
    diffusion: Diffusion,
    noise: Tensor,
    times: list[int],
    draw_noise: Callable[[], Tensor],
    score: Score | None = None,
    clip: float | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Samples as DDPM does, with the posterior's variance (arXiv 2006.11239, algorithm 2). `times` is every timestep.

    With a `score` each mean is shifted by variance x score: classifier guidance (arXiv 2105.05233, algorithm 1).
    `clip` bounds the predicted x_0, for pictures.
    """
    x = noise
    for t in times:
        pull = None
        if score is not None and t > 0 and diffusion.alpha_bar[t] >= VANISHED:
            prediction, pull = score(x, t)
        else:
            prediction = denoiser(x, t)
        x0, _ = diffusion.to_x0_and_noise(prediction, x, t)
        x0 = x0 if clip is None else x0.clamp(-clip, clip)
        of_x0, of_xt, variance = diffusion.posterior(t)
        mean = of_x0.float() * x0 + of_xt.float() * x
        if pull is not None:
            mean = mean + variance.float() * pull
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
    """Applies classifier-free guidance u + scale (c - u) (arXiv 2207.12598) in an interval of t / T (2404.07724).

    `both` computes conditional and unconditional predictions of one x in one pass, concatenated. Outside the
    interval, and at scale 1, only the conditional one is computed; at scale 0 only the unconditional one.
    """

    def denoise(x: Tensor, t: int) -> Tensor:
        if scale == 0:
            return unconditional(x, t)
        return guided_and_told(conditional, both, scale, timesteps, interval)(x, t)[0]

    return denoise


def guided_and_told(
    conditional: Denoiser,
    both: Denoiser,
    scale: float,
    timesteps: int,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    """Returns a function that gives the guided prediction of `guided` and the conditional one from one evaluation."""
    low, high = interval

    def predict(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        if scale == 1 or (scale != 0 and not low <= (t + 1) / timesteps <= high):
            told = conditional(x, t)
            return told, told
        told, untold = both(x, t).chunk(2)
        return untold + scale * (told - untold), told

    return predict


def score_of(
    predict: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    log_probability: Callable[[Tensor, Tensor, int], Tensor],
    scale: float,
) -> Score:
    """Returns a score, whose gradient is scale x grad log p(y | x_t).

    `predict` is as `guided_and_told` returns it; `log_probability` maps (conditional prediction, x_t, t) to
    log p(y | x_t), (b,).
    """

    def score(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            prediction, told = predict(x, t)
            (gradient,) = torch.autograd.grad(log_probability(told, x, t).sum(), x)
        return prediction.detach(), scale * gradient

    return score


def score_guided(denoiser: Denoiser, diffusion: Diffusion, score: Score) -> Denoiser:
    """Adds classifier guidance for DDIM: eps - sigma_t score, as the network predicts (arXiv 2105.05233, alg. 2).

    Where abar is below 0.001 the score is left out: there a small change of eps changes x_0 without bound.
    """

    def denoise(x: Tensor, t: int) -> Tensor:
        if diffusion.alpha_bar[t] < VANISHED:
            return denoiser(x, t)
        prediction, pull = score(x, t)
        _, eps = diffusion.to_x0_and_noise(prediction, x, t)
        alpha, sigma = diffusion.scales(t)
        eps = eps - sigma * pull
        return diffusion.target((x - sigma * eps) / alpha, eps, t)

    return denoise


@dataclass(frozen=True)
class Solver:
    """A way to sample: `solve(denoiser, diffusion, noise, times, **options)`, with the options it takes by name.

    `every_timestep`: it visits all of them and takes no number of steps.
    """

    solve: Callable[..., Iterator[tuple[int, Tensor, Tensor]]]
    options: tuple[str, ...]
    every_timestep: bool = False

    def times(self, diffusion: Diffusion, steps: int, spacing: str) -> list[int]:
        """Returns the timesteps it visits, falling."""
        return every_timestep(diffusion) if self.every_timestep else sampling_timesteps(diffusion, steps, spacing)


SAMPLERS = {
    "ddim": Solver(ddim, ("eta", "draw_noise", "score")),
    "dpm-solver++": Solver(dpm_solver, ("score",)),
    "ancestral": Solver(ancestral, ("draw_noise", "score", "clip"), every_timestep=True),  # DDPM's
}
