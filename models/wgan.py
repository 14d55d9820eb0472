"""Conditional residual WGAN-GP: generator, projection critic, losses, gradient penalty.

Wasserstein GAN with gradient penalty: arXiv 1704.00028. Projection critic: arXiv 1802.05637.
The same two networks work on pictures (64x64) and on latents (8x8): the number of blocks is the number of
halvings between the full resolution and 4x4.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from models.blocks import conv3x3, normalisation


class GeneratorBlock(nn.Module):
    """Residual block with nearest-neighbour upsampling (or none), its norms scaled and shifted by `style` if given."""

    def __init__(self, inputs: int, outputs: int, upsample: bool, style: int | None):
        super().__init__()
        self.upsample = upsample
        self.norm1, self.norm2 = normalisation("group", inputs), normalisation("group", outputs)
        self.conv1, self.conv2 = conv3x3(inputs, outputs), conv3x3(outputs, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.film = nn.Linear(style, 2 * (inputs + outputs)) if style else None
        self.widths = (inputs, inputs, outputs, outputs)

    def _grow(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.upsample else x

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        h, g = self.norm1(x), None
        if self.film is not None:
            scale1, shift1, scale2, shift2 = rearrange(self.film(style), "b c -> b c 1 1").split(self.widths, dim=1)
            h, g = h * (1 + scale1) + shift1, (1 + scale2, shift2)
        h = self.norm2(self.conv1(self._grow(F.relu(h))))
        if g is not None:
            h = h * g[0] + g[1]
        return self._grow(self.skip(x)) + self.conv2(F.relu(h))


class Generator(nn.Module):
    """Noise (b, noise) and labels (b, classes) -> (b, outputs, size, size).

    `concatenation`: noise and the embedded label set enter together at 4x4. `modulation`: they also scale and
    shift every norm. `bounded` ends in tanh, for pictures.
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
    ):
        super().__init__()
        doublings = int(math.log2(size // 4))
        if len(channels) <= doublings:
            raise ValueError(f"a generator of {size}x{size} needs at least {doublings + 1} widths")
        self.noise, self.bounded = noise, bounded
        self.label = nn.Linear(classes, label_width)
        nn.init.normal_(self.label.weight)  # as loud as the noise beside it
        style = noise + label_width if condition == "modulation" else None
        self.enter = nn.Linear(noise + label_width, channels[0] * 16)
        pairs = list(pairwise(channels))
        # further blocks than doublings work at the full resolution
        self.blocks = nn.ModuleList(GeneratorBlock(a, b, i < doublings, style) for i, (a, b) in enumerate(pairs))
        self.leave = nn.Sequential(normalisation("group", channels[-1]), nn.ReLU(), conv3x3(channels[-1], outputs))

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        style = torch.cat([noise, self.label(labels)], dim=1)
        x = rearrange(self.enter(style), "b (c h w) -> b c h w", h=4, w=4)
        for block in self.blocks:
            x = block(x, style)
        x = self.leave(x).float()
        return x.tanh() if self.bounded else x


class CriticBlock(nn.Module):
    """Residual block without norm, halving by average pooling (or not). Smooth activations: the penalty needs
    their second derivative."""

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


class Critic(nn.Module):
    """(b, inputs, size, size), labels (b, classes) -> scores (b,): psi(h) + <embed(labels), h>, h the 4x4 features.

    `pool`: h flattened, as in the report, or summed over space. With `auxiliary` a second head classifies the
    labels (arXiv 1610.09585, for several labels at once).
    """

    def __init__(self, classes: int, inputs: int, size: int, channels: tuple[int, ...], pool: str, auxiliary: bool):
        super().__init__()
        halvings = int(math.log2(size // 4))
        if len(channels) <= halvings:
            raise ValueError(f"a critic of {size}x{size} needs at least {halvings + 1} widths")
        self.pool = pool
        self.enter = conv3x3(inputs, channels[0])
        pairs = list(pairwise(channels))
        first = len(pairs) - halvings  # further blocks than halvings work at the full resolution
        self.blocks = nn.ModuleList(CriticBlock(a, b, i >= first) for i, (a, b) in enumerate(pairs))
        width = channels[-1] * (16 if pool == "flatten" else 1)
        self.score = nn.Linear(width, 1)
        self.project = nn.Linear(classes, width, bias=False)
        self.classify = nn.Linear(width, classes) if auxiliary else None

    def features(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        x = F.silu(x)
        return rearrange(x, "b c h w -> b (c h w)") if self.pool == "flatten" else reduce(x, "b c h w -> b c", "sum")

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores (b,) and, with the auxiliary head, label logits (b, classes)."""
        h = self.features(x)
        with torch.autocast(
            h.device.type, enabled=False
        ):  # scores grow without bound: bfloat16 would round them to whole steps
            h, labels = h.float(), labels.float()
            logits = None if self.classify is None else self.classify(h)
            return self.score(h)[:, 0] + (self.project(labels) * h).sum(1), logits


def wasserstein_critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E[D(fake)] - E[D(real)]: minus the Wasserstein estimate."""
    return fake.mean() - real.mean()


def gradient_penalty(critic, real: Tensor, fake: Tensor, labels: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
    """E[(|grad_x D(x, y)| - 1)^2] between pairs that share their labels (arXiv 1704.00028, eq. 3), and the mean norm.

    real, fake: (b, c, h, w); mix: (b, 1, 1, 1) in [0, 1]. Call it outside autocast: float32.
    """
    x = (mix * real + (1 - mix) * fake).detach().requires_grad_()
    scores = critic(x, labels)[0]
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    norms = gradient.flatten(1).norm(dim=1)
    return (norms - 1).square().mean(), norms.mean()
