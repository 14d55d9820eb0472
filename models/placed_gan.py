"""Generator and critic that work on a map of places: each object is drawn and scored at its place.

Layouts as the input of a GAN follow arXiv 1901.00686 and 2111.08960; a critic that classifies cells follows
arXiv 2012.04781.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from models.blocks import conv3x3, normalisation
from models.choices import PLACED_CRITIC_CONDITIONS
from models.condition import Condition, blobs, extent
from models.wgan import BODIES

TOGETHER = 3  # slots whose noise is drawn at once


def _spread(condition: Condition, side: int) -> Tensor:
    """Spreads each object around its place, evenly if that is unknown; 0 for an empty slot: (b, m, side, side)."""
    somewhere = (condition.present & ~condition.placed)[..., None, None] / side**2
    return blobs(condition.places, side, extent(side)) * condition.placed[..., None, None] + somewhere


class PlacedGenerator(nn.Module):
    """Maps noise, as `noise_of` draws it, and conditions to (b, outputs, size, size).

    `size` is `side`, that of the map of objects, times a power of two. The input at `side` x `side` is
    a learned background and, for each object, its embedding and noise through a small network, spread around its place.
    The scene's noise and the label set enter everywhere, and scale and shift every norm.
    `bounded` ends in tanh, for pictures. Arguments as in the configuration's `gan.generator` section.
    """

    places = True

    def __init__(
        self,
        classes: int,
        outputs: int,
        size: int,
        side: int,
        noise: int,
        object_noise: int,
        channels: tuple[int, ...],
        label_width: int,
        bounded: bool,
        body: str = "residual",
    ):
        super().__init__()
        doublings = int(math.log2(size // side))
        if len(channels) <= doublings:
            raise ValueError(
                f"a generator of {size}x{size} from a map of {side}x{side} needs at least {doublings + 1} widths"
            )
        self.noise, self.object_noise, self.bounded, self.side = noise, object_noise, bounded, side
        first = channels[0]
        self.label = nn.Embedding(classes, label_width)
        self.object = nn.Sequential(nn.Linear(label_width + object_noise, first), nn.SiLU(), nn.Linear(first, first))
        self.background = nn.Parameter(torch.randn(first, side, side))
        self.everywhere = nn.Linear(noise + label_width, first)
        block, _ = BODIES[body]
        # blocks beyond the doublings work at the full resolution
        self.blocks = nn.ModuleList(
            block(a, b, i < doublings, noise + label_width, False) for i, (a, b) in enumerate(pairwise(channels))
        )
        self.leave = nn.Sequential(normalisation("group", channels[-1]), nn.ReLU(), conv3x3(channels[-1], outputs))

    def noise_of(self, draw: Callable[[int], Tensor], slots: int) -> Tensor:
        """Draws noise for a batch of `slots` slots by draw(width) -> (b, width): the scene's, then each slot's.

        It is drawn for three slots at a time, as randn gives other numbers at another width: a sample's noise must not
        depend on the slots of its batch.
        """
        parts = [draw(self.noise + TOGETHER * self.object_noise)]
        parts += [draw(TOGETHER * self.object_noise) for _ in range(TOGETHER, slots, TOGETHER)]
        return torch.cat(parts, dim=1)[:, : self.noise + slots * self.object_noise]

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        scene, each = noise[:, : self.noise], noise[:, self.noise :]
        objects = self.label(condition.objects.clamp(min=0)) * condition.present[..., None]
        style = torch.cat([scene, objects.sum(1)], dim=1)
        seeds = rearrange(each, "b (m n) -> b m n", m=condition.slots)
        drawn = self.object(torch.cat([objects, seeds], dim=2))
        x = torch.einsum("b m h w, b m c -> b c h w", _spread(condition, self.side).to(drawn.dtype), drawn)
        x = x + self.background + self.everywhere(style)[:, :, None, None]
        x = x.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x, style)
        x = self.leave(x).float()
        return x.tanh() if self.bounded else x


class PlacedCritic(nn.Module):
    """Maps (b, inputs, size, size), conditions to scores (b,) and logits (b, classes + 1, side, side) or None.

    `condition`, one of PLACED_CRITIC_CONDITIONS: `projection`, the score is that of a projection critic on the summed
    features (arXiv 1802.05637), plus that of each object asked for, read from its class's map at its place;
    `auxiliary`, a second head classifies what each cell shows. The last class of its logits is the background.
    """

    def __init__(
        self,
        classes: int,
        inputs: int,
        size: int,
        side: int,
        channels: tuple[int, ...],
        condition: str = "projection+auxiliary",
        body: str = "residual",
    ):
        super().__init__()
        halvings = int(math.log2(size // side))
        if len(channels) <= halvings:
            raise ValueError(
                f"a critic of {size}x{size} that reads a map of {side}x{side} needs at least {halvings + 1} widths"
            )
        if condition not in PLACED_CRITIC_CONDITIONS:
            raise ValueError(f"unknown condition {condition!r}; choose one of {', '.join(PLACED_CRITIC_CONDITIONS)}")
        ways = condition.split("+")
        self.enter = conv3x3(inputs, channels[0])
        _, block = BODIES[body]
        pairs = list(pairwise(channels))
        first = len(pairs) - halvings  # blocks beyond the halvings work at the full resolution
        self.blocks = nn.ModuleList(block(a, b, i >= first) for i, (a, b) in enumerate(pairs))
        width = channels[-1]
        self.score = nn.Linear(width, 1)
        self.project = nn.Linear(classes, width, bias=False) if "projection" in ways else None
        self.there = nn.Conv2d(width, classes, 1) if "projection" in ways else None
        self.classify = nn.Conv2d(width, classes + 1, 1) if "auxiliary" in ways else None

    def forward(self, x: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        # scores grow without bound: bfloat16 would round them to whole steps
        with torch.autocast(x.device.type, enabled=False):
            x = nn.functional.silu(x.float())
            total = reduce(x, "b c h w -> b c", "sum")
            score = self.score(total)[:, 0]
            if self.project is not None and self.there is not None:
                read = _read(self.there(x), condition)
                score = score + (self.project(condition.labels) * total).sum(1) + read.sum(1)
            return score, None if self.classify is None else self.classify(x)


def _read(maps: Tensor, condition: Condition) -> Tensor:
    """Returns the mean of each object's map around its place, 0 for an empty slot: (b, classes, h, h) -> (b, m)."""
    side = maps.shape[-1]
    spread = _spread(condition, side)
    asked = condition.objects.clamp(min=0)[:, :, None, None].expand(-1, -1, side, side)
    return (spread * maps.gather(1, asked)).sum((2, 3)) / spread.sum((2, 3)).clamp(min=1e-6)
