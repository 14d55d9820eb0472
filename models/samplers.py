"""DDIM, and guidance as a wrapper of the denoiser.

A *denoiser* is a callable (x_t (b, c, h, w), t (b,) int64) -> the network's prediction (b, c, h, w).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from models.diffusion import Diffusion

Denoiser = Callable[[Tensor, Tensor], Tensor]


def trailing_timesteps(timesteps: int, steps: int) -> list[int]:
    """`steps` timesteps from T - 1 down, evenly spaced: sampling starts at full noise (arXiv 2305.08891, 3.3)."""
    return [round(timesteps * (1 - i / steps)) - 1 for i in range(steps)]


def sampling_timesteps(diffusion: Diffusion, steps: int) -> list[int]:
    """The timesteps DDIM visits, falling, none twice.

    With noise prediction sampling starts where abar is 0.001: nearer to T alpha all but vanishes, and
    x_0 = (x - sigma eps) / alpha would blow up any error of the network, several hundred times at T - 1.
    """
    usable = len(diffusion)
    if diffusion.prediction == "noise":
        usable = max(1, int((diffusion.alpha_bar >= 1e-3).sum()))
    return list(dict.fromkeys(max(0, t) for t in trailing_timesteps(usable, steps)))


def ddim(
    denoiser: Denoiser,
    diffusion: Diffusion,
    noise: Tensor,
    steps: int,
    eta: float = 0.0,
    draw_noise: Callable[[], Tensor] | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """DDIM (arXiv 2010.02502, eq. 12 and 16) from `noise` (b, c, h, w). Yields (t, x after the step, predicted x_0).

    The step before the last of the list is the list's own next timestep, and after its end abar is 1, so the last
    x equals the predicted x_0. eta > 0 asks `draw_noise` for fresh noise at every step.
    """
    x = noise
    times = sampling_timesteps(diffusion, steps)
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
