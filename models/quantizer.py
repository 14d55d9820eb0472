"""Quantisers of latents: a codebook, finite scalars, residual codebooks.

All have `forward(latents) -> quantised, indices, loss`, `nearest(latents) -> indices`, `lookup(indices) -> latents`,
`bounded(latents)`, which is applied to an encoder's output first, and `codebook_size`. Latents are (b, d, h, w)
float32, indices (b, h, w) int64 below `codebook_size`, one per cell.

Codebooks are in models/codebooks.py, which is imported only where one is built: its library takes seconds to load.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Union

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from models.codebooks import Quantizer, Residual


class FiniteScalar(nn.Module):
    """Rounds each channel to one of `levels` whole numbers around 0 (FSQ, arXiv 2309.15505); nothing is learned.

    The latents are bounded by b tanh(x / b), with b half a level beyond the outermost: their slope at 0 is 1, and every
    level has its share of the range. Gradients pass straight through the rounding. The loss is 0.
    """

    def __init__(self, dim: int, levels: int):
        super().__init__()
        self.dim, self.levels, self.most = dim, levels, (levels - 1) // 2
        self.codebook_size = levels**dim

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps bounded latents (b, d, h, w) to quantised (b, d, h, w), indices (b, h, w) int64, loss 0."""
        indices = self.nearest(latents)
        return latents + (self.lookup(indices) - latents).detach(), indices, latents.new_zeros(())

    def bounded(self, latents: Tensor) -> Tensor:
        """Bounds latents (b, d, h, w) to within half a level of the outermost levels."""
        bound = self.most + 0.5
        return bound * (latents / bound).tanh()

    def nearest(self, latents: Tensor) -> Tensor:
        """Returns indices (b, h, w) int64: the levels are the digits of a number, the first channel's the last."""
        digits = latents.detach().float().round().clamp(-self.most, self.most).long() + self.most
        places = self.levels ** torch.arange(self.dim, device=latents.device)
        return (digits * places[:, None, None]).sum(1)

    def lookup(self, indices: Tensor) -> Tensor:
        """Returns the levels (b, d, h, w) float32 of indices (b, h, w)."""
        places = self.levels ** torch.arange(self.dim, device=indices.device)
        return (indices[:, None] // places[:, None, None] % self.levels - self.most).float()


def _codebook(*arguments: Any, **options: Any) -> "Quantizer":
    from models.codebooks import Quantizer

    return Quantizer(*arguments, **options)


def _residual(*arguments: Any, **options: Any) -> "Residual":
    from models.codebooks import Residual

    return Residual(*arguments, **options)


AnyQuantizer = Union["Quantizer", FiniteScalar, "Residual"]
QUANTIZERS: dict[str, Callable[..., AnyQuantizer]] = {"codebook": _codebook, "fsq": FiniteScalar, "residual": _residual}
