"""Diffusion as pure functions: schedules, prediction types and their conversions, loss weights.

x_t = alpha_t x_0 + sigma_t eps with alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t)   (arXiv 2006.11239, eq. 4)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

VANISHED = 1e-3  # an abar below this shows almost nothing of x_0


def cosine_alpha_bar(timesteps: int, offset: float = 0.008) -> Tensor:
    """Returns abar_1 .. abar_T, float64 (timesteps,) (arXiv 2102.09672, eq. 17; each beta clipped at 0.999)."""
    t = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    return _from_function(torch.cos((t + offset) / (1 + offset) * math.pi / 2).square())


def _from_function(f: Tensor) -> Tensor:
    """Turns unnormalised abar_0 .. abar_T into abar_1 .. abar_T, each beta clipped at 0.999."""
    betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return torch.cumprod(1 - betas, dim=0)


def linear_alpha_bar(timesteps: int, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Returns abar of linearly rising betas, float64 (timesteps,) (arXiv 2006.11239, section 4).

    `first` and `last` are for 1000 timesteps. With fewer the betas grow, so that the last step is as close to noise.
    """
    betas = torch.linspace(first, last, timesteps, dtype=torch.float64) * 1000 / timesteps
    return torch.cumprod(1 - betas.clamp(max=0.999), dim=0)


def beta_cosine_alpha_bar(timesteps: int, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Returns abar of betas that rise along half a cosine: b_1 + (b_2 - b_1)(1 - cos(pi t)) / 2, t from 0 to 1.

    The second report uses it with 500 timesteps, where the last abar is .0065; with 250 it would be .08.
    """
    t = torch.linspace(0, 1, timesteps, dtype=torch.float64)
    return torch.cumprod(1 - (first + (last - first) * (1 - torch.cos(math.pi * t)) / 2), dim=0)


def sigmoid_alpha_bar(timesteps: int, start: float = -3.0, end: float = 3.0) -> Tensor:
    """Returns abar along a sigmoid, float64 (timesteps,) (arXiv 2301.10972, algorithm 1, tau = 1; clipped at 0.999)."""
    t = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    low, high = (torch.tensor(v, dtype=torch.float64).sigmoid() for v in (start, end))
    return _from_function((high - (start + t * (end - start)).sigmoid()) / (high - low))


def zero_terminal(alpha_bar: Tensor) -> Tensor:
    """Shifts and scales a schedule so that its last step is pure noise (arXiv 2305.08891, algorithm 1)."""
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()


def weighted_timesteps(places: Tensor, weights: Tensor) -> Tensor:
    """Maps `places` (b,) in [0, 1) to timesteps (b,), each in proportion to its share of `weights` (T,)."""
    shares = weights.double().cumsum(0) / weights.double().sum()
    return torch.searchsorted(shares, places.double(), right=True).clamp(max=len(weights) - 1)


SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "cosine": cosine_alpha_bar,
    "linear": linear_alpha_bar,
    "beta-cosine": beta_cosine_alpha_bar,
    "sigmoid": sigmoid_alpha_bar,
}


def _column(values: Tensor) -> Tensor:
    """(b,) float64 -> (b, 1, 1, 1) float32; () -> (), which an operation on a device takes from the host."""
    return values.float() if values.ndim == 0 else values[:, None, None, None].float()


@dataclass(frozen=True)
class Diffusion:
    """A noise schedule and what the network predicts. `alpha_bar`: (T,) float64, on the host; t counts from 0.

    Where t is a tensor (b,) on `device`, so are the results. Where it is one number for the whole batch, as in
    sampling, scales and posterior are single numbers (), on the host: nothing waits for the device to tell them.
    """

    alpha_bar: Tensor
    prediction: str = "v"
    device: torch.device | str = "cpu"
    _on_device: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_on_device", self.alpha_bar.to(self.device))

    @classmethod
    def create(
        cls,
        schedule: str,
        timesteps: int,
        prediction: str,
        device: torch.device | str = "cpu",
        zero_terminal_snr: bool = False,
    ) -> "Diffusion":
        alpha_bar = SCHEDULES[schedule](timesteps)
        return cls(zero_terminal(alpha_bar) if zero_terminal_snr else alpha_bar, prediction, device)

    def __len__(self) -> int:
        return len(self.alpha_bar)

    def _at(self, t: Tensor | int) -> Tensor:
        """Returns abar_t, float64: (b,) on the device for t (b,), () on the host for a number."""
        return self.alpha_bar[t] if isinstance(t, int) else self._on_device[t]

    def scales(self, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """Returns alpha_t and sigma_t for integer t (b,), each (b, 1, 1, 1) float32; () for a number."""
        alpha_bar = self._at(t)
        return _column(alpha_bar.sqrt()), _column((1 - alpha_bar).sqrt())

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor | int) -> Tensor:
        """Returns x_t (b, c, h, w)."""
        alpha, sigma = self.scales(t)
        return alpha * x0 + sigma * noise

    def posterior(self, t: Tensor | int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the posterior q(x_{t-1} | x_t, x_0) (arXiv 2006.11239, eq. 7), each (b,) or () float64.

        They are the factors of x_0 and x_t in its mean, and its variance. At t = 0 the mean is x_0, the variance 0.
        """
        here = self._at(t)
        if isinstance(t, int):
            before = self._at(t - 1) if t > 0 else torch.ones_like(here)
        else:
            before = torch.where(t > 0, self._at((t - 1).clamp(min=0)), torch.ones_like(here))
        beta = 1 - here / before
        of_x0, of_xt = before.sqrt() * beta / (1 - here), (1 - beta).sqrt() * (1 - before) / (1 - here)
        return of_x0, of_xt, beta * (1 - before) / (1 - here)

    def well_posed(self) -> Tensor:
        """Returns (T,) bool, on the host: whether a step removes at most half of the alpha^2 that remains.

        The last few steps of a cosine schedule remove more: there an error of the predicted eps is amplified up to 30
        times in x_0 and in the step's mean.
        """
        before = torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar[:-1]])
        return 1 - self.alpha_bar / before <= 0.5

    def target(self, x0: Tensor, noise: Tensor, t: Tensor | int) -> Tensor:
        """Returns the target of the prediction: eps, x_0, v = alpha eps - sigma x_0, or the posterior's mean.

        v is from arXiv 2202.00512, appendix D.
        """
        if self.prediction == "noise":
            return noise
        if self.prediction == "x0":
            return x0
        if self.prediction == "mean":
            of_x0, of_xt, _ = map(_column, self.posterior(t))
            return of_x0 * x0 + of_xt * self.noised(x0, noise, t)
        alpha, sigma = self.scales(t)
        return alpha * noise - sigma * x0

    def to_x0_and_noise(self, prediction: Tensor, xt: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """Converts the network's prediction at x_t to (x_0, eps)."""
        alpha, sigma = self.scales(t)
        if self.prediction == "noise":
            return (xt - sigma * prediction) / alpha, prediction
        if self.prediction == "v":
            return alpha * xt - sigma * prediction, sigma * xt + alpha * prediction
        x0 = prediction
        if self.prediction == "mean":
            of_x0, of_xt, _ = map(_column, self.posterior(t))
            x0 = (prediction - of_xt * xt) / of_x0
        return x0, (xt - alpha * x0) / sigma

    def loss_weight(
        self, t: Tensor, min_snr: float | None, bound: bool = False, log_snr: tuple[float, float] | None = None
    ) -> Tensor:
        """Returns the weights (b,) of this prediction's squared error at t (b,).

        argument    weight                                                  of the error of   source
        `min_snr`   min(snr, min_snr)                                       x_0               arXiv 2303.09556, eq. 8
        `log_snr`   exp(-((log snr - mean) / deviation)^2 / 2)              v                 arXiv 2206.00364, sec. 5
        `bound`     the variational bound's, scaled to a mean of 1 over t   x_0               arXiv 2006.11239, eq. 12
        none        1                                                       the prediction

        Relative to the squared error of x_0, that of eps is snr times, that of v is snr + 1 times, and that of the mean
        is the square of its factor of x_0.
        """
        if log_snr is not None:
            mean, deviation = log_snr
            snr = self._snr(t).clamp(min=1e-30)  # 0 where the schedule ends in pure noise
            bell = (-0.5 * ((snr.log() - mean) / deviation).square()).exp()
            return (bell * (snr + 1) / self._error_ratio(t).clamp(min=1e-30)).float()
        if bound:
            everything = torch.arange(len(self), device=t.device)
            weights = self._bound_on_x0(everything) / self._error_ratio(everything)
            if self.prediction in (
                "noise",
                "mean",
            ):  # elsewhere one step would dominate; DDPM's sampler does not go there
                weights = torch.where(self.well_posed().to(t.device), weights, 0.0)
            return (weights / weights.mean())[t].float()
        if min_snr is None:
            return torch.ones(len(t), device=t.device)
        return (self._snr(t).clamp(max=min_snr) / self._error_ratio(t)).float()

    def _snr(self, t: Tensor) -> Tensor:
        return self._at(t) / (1 - self._at(t))

    def _error_ratio(self, t: Tensor) -> Tensor:
        """Returns the prediction's squared error (b,) float64 for a squared error of 1 in x_0."""
        snr = self._snr(t)
        match self.prediction:
            case "noise":
                return snr
            case "v":
                return snr + 1
            case "mean":
                return self.posterior(t)[0].square()
        return torch.ones_like(snr)

    def _bound_on_x0(self, t: Tensor) -> Tensor:
        """Returns the bound's weight on x_0's error: factor^2 / (2 variance), at t = 0 with the variance of t = 1."""
        of_x0, _, variance = self.posterior(t)
        return of_x0.square() / (2 * torch.where(t > 0, variance, self.posterior(t.clamp(min=1))[2]))
