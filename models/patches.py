"""Diffusion on patches of pixels: the cross-attention UNet on patches of a picture (JiT, arXiv 2511.13720)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.condition import Condition
from models.sizes import CELL
from models.unet import Told, UNet

PATCH = CELL  # pixels a side: the UNet's maps are those of latents


def patch(pictures: Tensor) -> Tensor:
    """Moves a patch's pixels into one cell's channels: (b, 3, h, w) -> (b, 192, h / 8, w / 8)."""
    return F.pixel_unshuffle(pictures, PATCH)


def unpatch(patches: Tensor) -> Tensor:
    """Inverts `patch` bit for bit: (b, 192, h, w) -> (b, 3, 8 h, 8 w)."""
    return F.pixel_shuffle(patches, PATCH)


class PatchUNet(nn.Module):
    """Maps normalised pixels x_t (b, 3, side, side), t (b,), condition (b rows) to a prediction (b, 3, side, side).

    A patch enters through a linear bottleneck of `bottleneck` channels, since pictures fill few of its 192 dimensions
    and noise fills all (JiT, section 4.3), and leaves through one linear layer. The two input layers have no bias, so
    that an estimate of zeros (`self_condition`) stays zero. `channels` and `options` are UNet's.

    `mean` and `deviation` (3, side, side) of the training set's pixels are part of the network's state, so that a
    loaded network can draw: x = (picture - mean) / deviation.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, classes: int, most: int, bottleneck: int, channels: int, side: int, **options: object):
        super().__init__()
        values, width = 3 * PATCH**2, channels
        self.embed = nn.Sequential(
            nn.Conv2d(values, bottleneck, 1, bias=False), nn.Conv2d(bottleneck, width, 1, bias=False)
        )
        build: Callable[..., UNet] = UNet  # which checks its options
        self.unet = build(width, classes, most, channels=channels, **options)
        self.unembed = nn.Conv2d(width, values, 1)
        self.places, self.turns = self.unet.places, self.unet.turns
        self.self_condition = self.unet.self_condition
        self.register_buffer("mean", torch.zeros(3, side, side))
        self.register_buffer("deviation", torch.ones(3, side, side))

    def set_scale(self, mean: Tensor, deviation: Tensor) -> None:
        """Sets the training set's mean picture and its pixels' deviations (above 0), each (3, side, side)."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    def normalised(self, pictures: Tensor) -> Tensor:
        """Converts pictures (b, 3, side, side) in [-1, 1] to the values that the diffusion works on."""
        return (pictures - self.mean) / self.deviation

    def pictures(self, x: Tensor) -> Tensor:
        """Inverts `normalised`."""
        return x * self.deviation + self.mean

    def told(self, condition: Condition, keep: Tensor | None, side: int) -> Told:
        """`UNet.told` for pictures of `side` pixels."""
        return self.unet.told(condition, keep, side // PATCH)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: Condition | Told,
        keep: Tensor | None = None,
        estimate: Tensor | None = None,
    ) -> Tensor:
        """`keep` and `estimate` as UNet's; an estimate is (b, 3, side, side)."""
        if estimate is not None:
            estimate = self.embed(patch(estimate))
        hidden = self.unet(self.embed(patch(x)), t, condition, keep, estimate)
        return unpatch(self.unembed(hidden).float())
