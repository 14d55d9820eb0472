"""Conditional generator and critic, residual (arXiv 1704.00028) or DCGAN (arXiv 1511.06434).

The same two networks work on pictures and on latents, an eighth as wide: the number of blocks is the number of
halvings between the full resolution and 4x4. Labels enter the generator by concatenation, by conditional batch norm
(arXiv 1707.00683) or by modulation, and the critic by projection (arXiv 1802.05637), by a head that classifies them
(arXiv 1610.09585) or by concatenation.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from models.blocks import Attention, conv3x3, normalisation
from models.choices import CRITIC_CONDITIONS
from models.condition import Condition


class ConditionalNorm(nn.Module):
    """Group norm, or batch norm with `batch`, scaled and shifted by a style (b, style) if given."""

    def __init__(self, channels: int, style: int | None, batch: bool):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False) if batch else normalisation("group", channels)
        self.film = nn.Linear(style, 2 * channels) if style else None

    def forward(self, x: Tensor, style: Tensor | None) -> Tensor:
        x = self.norm(x)
        if self.film is None:
            return x
        scale, shift = rearrange(self.film(style), "b (two c) -> two b c 1 1", two=2)
        return x * (1 + scale) + shift


class GeneratorBlock(nn.Module):
    """Residual block with nearest-neighbour upsampling, or none."""

    def __init__(self, inputs: int, outputs: int, upsample: bool, style: int | None, batch: bool):
        super().__init__()
        self.upsample = upsample
        self.norm1, self.norm2 = ConditionalNorm(inputs, style, batch), ConditionalNorm(outputs, style, batch)
        self.conv1, self.conv2 = conv3x3(inputs, outputs), conv3x3(outputs, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def _grow(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.upsample else x

    def forward(self, x: Tensor, style: Tensor | None) -> Tensor:
        h = self.conv1(self._grow(F.relu(self.norm1(x, style))))
        h = self.conv2(F.relu(self.norm2(h, style)))
        return self._grow(self.skip(x)) + h


class DcganGeneratorBlock(nn.Module):
    """Norm, ReLU, transposed 4x4 convolution of stride 2 (or a plain 3x3 one)."""

    def __init__(self, inputs: int, outputs: int, upsample: bool, style: int | None, batch: bool):
        super().__init__()
        self.norm = ConditionalNorm(inputs, style, batch)
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1) if upsample else conv3x3(inputs, outputs)

    def forward(self, x: Tensor, style: Tensor | None) -> Tensor:
        return self.conv(F.relu(self.norm(x, style)))


class SelfAttention(nn.Module):
    """Adds attention over a map's cells (SAGAN, arXiv 1805.08318), not fused: the penalty differentiates twice.

    Heads have 64 channels, or the next larger width that divides `channels`.
    """

    def __init__(self, channels: int):
        super().__init__()
        heads = next(n for n in range(max(1, channels // 64), 0, -1) if channels % n == 0)
        self.attention = Attention(channels, heads, fused=False)

    def forward(self, x: Tensor) -> Tensor:
        cells = rearrange(x, "b c h w -> b (h w) c")
        return x + rearrange(self.attention(cells), "b (h w) c -> b c h w", h=x.shape[2])


class Generator(nn.Module):
    """Maps noise (b, noise) and the label sets of conditions to (b, outputs, size, size).

    Noise and the embedded label set enter together at 4x4. `modulation`: they also scale and shift every norm;
    `batch-norm`: only the labels do, and the norm is batch norm. `attention`: self-attention at 8x8. `bounded` ends
    in tanh, for pictures.
    """

    def __init__(
        self,
        classes: int,
        outputs: int,
        size: int,
        noise: int,
        channels: tuple[int, ...],
        label_width: int,
        condition: str,
        bounded: bool,
        body: str = "residual",
        attention: bool = False,
    ):
        super().__init__()
        doublings = int(math.log2(size // 4))
        if len(channels) <= doublings:
            raise ValueError(f"a generator of {size}x{size} needs at least {doublings + 1} widths")
        self.noise, self.bounded, self.condition = noise, bounded, condition
        self.label = nn.Linear(classes, label_width)
        nn.init.normal_(self.label.weight)  # on the scale of the noise
        style = {"concatenation": None, "modulation": noise + label_width, "batch-norm": label_width}[condition]
        self.enter = nn.Linear(noise + label_width, channels[0] * 16)
        block, _ = BODIES[body]
        pairs = list(pairwise(channels))
        # blocks beyond the doublings work at the full resolution
        self.blocks = nn.ModuleList(
            block(a, b, i < doublings, style, condition == "batch-norm") for i, (a, b) in enumerate(pairs)
        )
        self.attention = SelfAttention(channels[1]) if attention else None
        self.leave = nn.Sequential(normalisation("group", channels[-1]), nn.ReLU(), conv3x3(channels[-1], outputs))

    def noise_of(self, draw: Callable[[int], Tensor], slots: int) -> Tensor:
        """Draws noise for a batch by draw(width) -> (b, width), for any number of slots."""
        return draw(self.noise)

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        label = self.label(condition.labels)
        both = torch.cat([noise, label], dim=1)
        style = label if self.condition == "batch-norm" else both
        x = rearrange(self.enter(both), "b (c h w) -> b c h w", h=4, w=4)
        for i, block in enumerate(self.blocks):
            x = block(x, style)
            if i == 0 and self.attention is not None:
                x = self.attention(x)
        x = self.leave(x).float()
        return x.tanh() if self.bounded else x


class CriticBlock(nn.Module):
    """Residual block without norm, halving by average pooling (or not).

    The activations are smooth, as the penalty needs their second derivative.
    """

    def __init__(self, inputs: int, outputs: int, downsample: bool):
        super().__init__()
        self.downsample = downsample
        self.conv1, self.conv2 = conv3x3(inputs, inputs), conv3x3(inputs, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def _shrink(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.downsample else x

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.conv1(F.silu(x))))
        return self.skip(self._shrink(x)) + self._shrink(h)


class DcganCriticBlock(nn.Module):
    """SiLU, 4x4 convolution of stride 2 (or a plain 3x3 one); no norm, as the penalty is per sample."""

    def __init__(self, inputs: int, outputs: int, downsample: bool):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 4, 2, 1) if downsample else conv3x3(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.silu(x))


BODIES = {"residual": (GeneratorBlock, CriticBlock), "dcgan": (DcganGeneratorBlock, DcganCriticBlock)}


class Critic(nn.Module):
    """Maps (b, inputs, size, size) and the label sets of conditions to scores (b,).

    `condition`, one of CRITIC_CONDITIONS: `projection`, psi(h) + <embed(labels), h> with the 4x4 features h;
    `auxiliary`, a second head classifies the labels (arXiv 1610.09585, for several labels at once); `contrast`, the
    projection itself learns to tell a picture's label set from others (arXiv 2101.04702); `concatenation`, the labels
    are extra input channels. `pool`: h is flattened, as in the report, or summed over space.
    """

    def __init__(
        self,
        classes: int,
        inputs: int,
        size: int,
        channels: tuple[int, ...],
        pool: str,
        condition: str = "projection",
        body: str = "residual",
        attention: bool = False,
    ):
        super().__init__()
        halvings = int(math.log2(size // 4))
        if len(channels) <= halvings:
            raise ValueError(f"a critic of {size}x{size} needs at least {halvings + 1} widths")
        if condition not in CRITIC_CONDITIONS:
            raise ValueError(f"unknown condition {condition!r}; choose one of {', '.join(CRITIC_CONDITIONS)}")
        ways = condition.split("+")
        self.pool, self.concatenates = pool, "concatenation" in ways
        self.enter = conv3x3(inputs + (classes if self.concatenates else 0), channels[0])
        _, block = BODIES[body]
        pairs = list(pairwise(channels))
        first = len(pairs) - halvings  # blocks beyond the halvings work at the full resolution
        self.blocks = nn.ModuleList(block(a, b, i >= first) for i, (a, b) in enumerate(pairs))
        self.attention = SelfAttention(channels[-2]) if attention else None  # before the last block: 8x8
        width = channels[-1] * (16 if pool == "flatten" else 1)
        self.score = nn.Linear(width, 1)
        self.project = nn.Linear(classes, width, bias=False) if "projection" in ways else None
        self.classify = nn.Linear(width, classes) if "auxiliary" in ways else None
        self.contrasts = "contrast" in ways

    def features(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for i, block in enumerate(self.blocks):
            if i == len(self.blocks) - 1 and self.attention is not None:
                x = self.attention(x)
            x = block(x)
        x = F.silu(x)
        return rearrange(x, "b c h w -> b (c h w)") if self.pool == "flatten" else reduce(x, "b c h w -> b c", "sum")

    def forward(self, x: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
        """Scores (b,) and, with the auxiliary head, label logits (b, classes).

        With `contrast` the latter are what each label would add to the score.
        """
        labels = condition.labels
        if self.concatenates:
            x = torch.cat([x, repeat(labels.to(x.dtype), "b k -> b k h w", h=x.shape[2], w=x.shape[3])], dim=1)
        h = self.features(x)
        # scores grow without bound: bfloat16 would round them to whole steps
        with torch.autocast(h.device.type, enabled=False):
            h = h.float()
            score = self.score(h)[:, 0]
            if self.project is not None:
                score = score + (self.project(labels) * h).sum(1)
            if self.contrasts and self.project is not None:
                return score, h @ self.project.weight
            return score, None if self.classify is None else self.classify(h)
