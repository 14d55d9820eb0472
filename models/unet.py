"""Cross-attention UNet on latents (arXiv 2112.10752): labels as a set of tokens, time by scale and shift."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import (
    Downsample,
    ResidualBlock,
    SpatialTransformer,
    Upsample,
    conv3x3,
    normalisation,
    sinusoidal,
    zero_init,
)


class LabelTokens(nn.Module):
    """Multi-hot labels (b, k) -> tokens (b, m, width), their mask (b, m), and their sum (b, width).

    `tokens`: the first token is a learned start, then one for each label present, m = 1 + `most`, the most labels
    of any row (known beforehand, so that nothing waits for the device; raise it to ask for more). `vector`: one
    token for the whole set. A dropped set (classifier-free guidance) is a learned null.
    """

    def __init__(self, classes: int, width: int, kind: str, most: int):
        super().__init__()
        self.kind, self.most = kind, most
        self.embedding = nn.Embedding(classes, width)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.null = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, labels: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`keep` (b,) bool: False drops the row's labels."""
        kept = labels * keep[:, None]
        first = torch.where(keep[:, None], self.start, self.null)
        total = first + kept @ self.embedding.weight
        if self.kind == "vector":
            return total[:, None], torch.ones(len(labels), 1, dtype=torch.bool, device=labels.device), total
        present, indices = kept.topk(self.most, dim=1)
        tokens = torch.cat([first[:, None], self.embedding(indices)], dim=1)
        mask = F.pad(present > 0, (1, 0), value=True)
        return tokens, mask, total


class Level(nn.Module):
    """A residual block with a transformer after it."""

    def __init__(self, inputs, outputs, embedding, heads, context, depth, expansion, dropout):
        super().__init__()
        self.block = ResidualBlock(inputs, outputs, embedding, dropout=dropout)
        self.transformer = SpatialTransformer(outputs, heads, context, depth, expansion)

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        return self.transformer(self.block(x, embedding), context, mask)


class UNet(nn.Module):
    """x_t (b, inputs, 8, 8), t (b,), labels (b, classes) -> prediction (b, inputs, 8, 8).

    Arguments as in the configuration's `ldm.network` section. Width grows by `multipliers`, one a resolution;
    every residual block is followed by a transformer.
    """

    def __init__(
        self,
        inputs: int = 6,
        classes: int = 24,
        most: int = 3,
        channels: int = 96,
        multipliers: tuple[int, ...] = (1, 2),
        blocks: int = 2,
        head_width: int | None = 32,
        heads: int | None = None,
        depth: int = 1,
        expansion: int = 2,
        context: int = 128,
        condition: str = "tokens",
        pooled: bool = False,
        dropout: float = 0.0,
        self_condition: bool = False,
    ):
        super().__init__()
        embedding = 4 * channels
        widths = [channels * m for m in multipliers]

        def level(entering: int, leaving: int) -> Level:
            number = heads or max(1, leaving // head_width)
            return Level(entering, leaving, embedding, number, context, depth, expansion, dropout)

        self.inputs, self.channels, self.self_condition = inputs, channels, self_condition
        self.labels = LabelTokens(classes, context, condition, most)
        self.time = nn.Sequential(nn.Linear(channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.pooled = nn.Linear(context, embedding) if pooled else None
        self.enter = conv3x3(inputs * (1 + self_condition), channels)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width, skips = channels, [channels]
        for i, outputs in enumerate(widths):
            if i > 0:
                self.down.append(Downsample(width, width))
                skips.append(width)
            for _ in range(blocks):
                self.down.append(level(width, outputs))
                width = outputs
                skips.append(width)
        self.middle = level(width, width)
        self.middle_end = ResidualBlock(width, width, embedding, dropout=dropout)
        for i, outputs in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(level(width + skips.pop(), outputs))
                width = outputs
            if i > 0:
                self.up.append(Upsample(width, width))
        self.leave = nn.Sequential(normalisation("group", width), nn.SiLU(), zero_init(conv3x3(width, inputs)))

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor, keep: Tensor | None = None, estimate: Tensor | None = None
    ) -> Tensor:
        """`keep` (b,) bool, all True by default: rows without it are unconditional.

        `estimate`, with self_condition: x_0 as predicted before (b, inputs, 8, 8), zeros where nothing was.
        """
        if self.self_condition:
            x = torch.cat([x, torch.zeros_like(x) if estimate is None else estimate], dim=1)
        if keep is None:
            keep = torch.ones(len(x), dtype=torch.bool, device=x.device)
        context, mask, total = self.labels(labels, keep)
        embedding = self.time(sinusoidal(t, self.channels))
        if self.pooled is not None:
            embedding = embedding + self.pooled(total)
        embedding = F.silu(embedding)
        x = self.enter(x)
        skips = [x]
        for module in self.down:
            x = module(x, embedding, context, mask) if isinstance(module, Level) else module(x)
            skips.append(x)
        x = self.middle_end(self.middle(x, embedding, context, mask), embedding)
        for module in self.up:
            if isinstance(module, Level):
                x = module(torch.cat([x, skips.pop()], dim=1), embedding, context, mask)
            else:
                x = module(x)
        return self.leave(x).float()
