"""Losses of a generator distilled from a diffusion model: distance from its teacher, a critic of features."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import conv3x3, normalisation

BEND = 0.1  # of the pseudo-Huber distance, in deviations of the latents: where it turns from square to linear


def pseudo_huber(made: Tensor, wanted: Tensor) -> Tensor:
    """Returns the mean of sqrt(d^2 + c^2) - c over all numbers: a few large errors count less than in the square."""
    return ((made - wanted).square() + BEND**2).sqrt().mean() - BEND


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l2": F.mse_loss, "huber": pseudo_huber}


class FeatureCritic(nn.Module):
    """Scores maps of features of a frozen network, each by a head of its own (arXiv 2403.12015, section 3.2).

    `widths`: the maps' channels. `channels`: those of every head.
    """

    def __init__(self, widths: Sequence[int], channels: int):
        super().__init__()
        self.heads = nn.ModuleList(self._head(width, channels) for width in widths)

    @staticmethod
    def _head(width: int, channels: int) -> nn.Module:
        score = nn.Conv2d(channels, 1, 1)
        return nn.Sequential(conv3x3(width, channels), normalisation("group", channels), nn.SiLU(), score)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps (b, width, h, h), one per head -> a score for each of their cells: (b, cells) float32."""
        scores = [head(values).flatten(1) for head, values in zip(self.heads, features, strict=True)]
        return torch.cat(scores, dim=1).float()
