"""Diffusion as pure functions: schedules, prediction types and their conversions, loss weights.

x_t = alpha_t x_0 + sigma_t eps with alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t)   (arXiv 2006.11239, eq. 4)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def cosine_alpha_bar(timesteps: int, offset: float = 0.008) -> Tensor:
    """abar_1 .. abar_T as float64 (timesteps,) (arXiv 2102.09672, eq. 17; each beta clipped at 0.999)."""
    t = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    f = torch.cos((t + offset) / (1 + offset) * math.pi / 2).square()
    betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return torch.cumprod(1 - betas, dim=0)


def linear_alpha_bar(timesteps: int, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """abar of linearly rising betas as float64 (timesteps,) (arXiv 2006.11239, section 4)."""
    return torch.cumprod(1 - torch.linspace(first, last, timesteps, dtype=torch.float64), dim=0)


SCHEDULES = {"cosine": cosine_alpha_bar, "linear": linear_alpha_bar}


@dataclass(frozen=True)
class Diffusion:
    """A noise schedule and what the network predicts. `alpha_bar`: (T,) float64; t counts from 0."""

    alpha_bar: Tensor
    prediction: str = "v"

    @classmethod
    def create(cls, schedule: str, timesteps: int, prediction: str, device: torch.device | str = "cpu") -> "Diffusion":
        return cls(SCHEDULES[schedule](timesteps).to(device), prediction)

    def __len__(self) -> int:
        return len(self.alpha_bar)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t for integer t (b,), each (b, 1, 1, 1) float32."""
        alpha_bar = self.alpha_bar[t][:, None, None, None]
        return alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t."""
        alpha, sigma = self.scales(t)
        return alpha * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should say: eps, or v = alpha eps - sigma x_0 (arXiv 2202.00512, appendix D)."""
        if self.prediction == "noise":
            return noise
        alpha, sigma = self.scales(t)
        return alpha * noise - sigma * x0

    def to_x0_and_noise(self, prediction: Tensor, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The network's word about x_t as (x_0, eps)."""
        alpha, sigma = self.scales(t)
        if self.prediction == "noise":
            return (xt - sigma * prediction) / alpha, prediction
        return alpha * xt - sigma * prediction, sigma * xt + alpha * prediction

    def loss_weight(self, t: Tensor, min_snr: float | None) -> Tensor:
        """min-SNR-gamma weights (b,) for this prediction's squared error (arXiv 2303.09556, eq. 8); ones without gamma.

        The weight on x_0's error is min(snr, gamma); eps' error is snr times x_0's, v's is (snr + 1) times.
        """
        if min_snr is None:
            return torch.ones(len(t), device=t.device)
        snr = self.alpha_bar[t] / (1 - self.alpha_bar[t])
        clipped = snr.clamp(max=min_snr)
        return (clipped / (snr if self.prediction == "noise" else snr + 1)).float()
