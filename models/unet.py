"""Cross-attention UNet on latents (arXiv 2112.10752): objects as tokens and on a map, time by scale and shift."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import (
    Downsample,
    Offered,
    ResidualBlock,
    SpatialTransformer,
    Upsample,
    conv3x3,
    normalisation,
    sinusoidal,
    zero_init,
)
from models.condition import Condition, blobs
from models.sizes import heads_at


class Tokens(nn.Module):
    """Embeds a condition as tokens (b, n, width), their mask (b, n) and their sum (b, width).

    `tokens`: a learned first token, then one per object, n = 1 + the condition's slots. `vector`: one token for the
    whole set. A dropped condition (classifier-free guidance) is a learned null token. With `order` a token also
    encodes the object's slot in the list; slots beyond the `most` of training count as the last. With `places` it
    encodes where the object is, by Fourier features, or a learned vector if unknown (arXiv 2301.07093, eq. 5); with
    `turns` how it is turned, if known.
    """

    OCTAVES = 6  # of the Fourier features: the finest period is a sixteenth of the picture

    def __init__(self, classes: int, width: int, kind: str, most: int, order: bool, places: bool, turns: bool):
        super().__init__()
        self.kind, self.most = kind, most
        self.embedding = nn.Embedding(classes, width)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.null = nn.Parameter(torch.randn(width) * 0.02)
        self.slot = nn.Embedding(most, width) if order else None
        self.place = nn.Linear(4 * self.OCTAVES, width) if places else None
        self.nowhere = nn.Parameter(torch.randn(width) * 0.02) if places else None
        self.turn = Turn(width) if turns else None

    def forward(self, condition: Condition, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`keep` (b,) bool: rows with False lose their condition."""
        first = torch.where(keep[:, None], self.start, self.null)
        present = condition.present & keep[:, None]
        objects = self.embedding(condition.objects.clamp(min=0))
        total = first + (objects * present[..., None]).sum(1)
        if self.kind == "vector":
            return total[:, None], torch.ones_like(keep)[:, None], total
        if self.slot is not None:
            slots = torch.arange(condition.slots, device=keep.device).clamp(max=self.most - 1)
            objects = objects + self.slot(slots)
        if self.place is not None and self.nowhere is not None:
            where = self.place(fourier(condition.places, self.OCTAVES))
            objects = objects + torch.where(condition.placed[..., None], where, self.nowhere)
        if self.turn is not None:
            objects = objects + self.turn(condition)
        return torch.cat([first[:, None], objects], dim=1), F.pad(present, (1, 0), value=True), total


def fourier(places: Tensor, octaves: int) -> Tensor:
    """Encodes (..., 2) in [0, 1] as (..., 4 octaves): sines, cosines of periods 2, 1, 1/2, ... (2003.08934, eq. 4)."""
    angles = places[..., None] * (math.pi * 2.0 ** torch.arange(octaves, device=places.device))
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class Turn(nn.Module):
    """Embeds how objects are turned: (b, m, width), zeros where it is not known.

    The features are sine and cosine of 1, 2, 4 and 8 times the angle. A cube looks the same after each quarter turn,
    so only the last two differ between what can be seen.
    """

    OCTAVES = 4

    def __init__(self, width: int):
        super().__init__()
        self.embed = nn.Linear(2 * self.OCTAVES, width)

    def forward(self, condition: Condition) -> Tensor:
        times = 2.0 ** torch.arange(self.OCTAVES, device=condition.device)
        angles = condition.turns[..., None] * (2 * math.pi * times)
        turn = self.embed(torch.cat([angles.sin(), angles.cos()], dim=-1))
        return torch.where(condition.turned[..., None], turn, 0.0)


class Raster(nn.Module):
    """Draws a condition as a map (b, channels, side, side): each placed object's embedding, spread around its place.

    With `turns` the embedding also says how the object is turned, if known. The last layer starts at zero, so a network
    that is given the map starts as if it were not there.
    """

    def __init__(self, classes: int, width: int, channels: int, turns: bool = False):
        super().__init__()
        self.embedding = nn.Embedding(classes, width)
        self.turn = Turn(width) if turns else None
        self.leave = zero_init(nn.Conv2d(width, channels, 1))

    def forward(self, condition: Condition, keep: Tensor, side: int) -> Tensor:
        """`keep` (b,) bool: rows with False lose their condition."""
        spread = blobs(condition.places, side) * (condition.placed & keep[:, None])[..., None, None]
        objects = self.embedding(condition.objects.clamp(min=0))
        if self.turn is not None:
            objects = objects + self.turn(condition)
        return self.leave(torch.einsum("b m h w, b m c -> b c h w", spread, objects.to(spread.dtype)))


class Level(nn.Module):
    """A residual block followed by a transformer."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        heads: int,
        context: int,
        depth: int,
        expansion: int,
        dropout: float,
    ):
        super().__init__()
        self.block = ResidualBlock(inputs, outputs, embedding, dropout=dropout)
        self.transformer = SpatialTransformer(outputs, heads, context, depth, expansion)

    def forward(self, x: Tensor, embedding: Tensor, offered: Sequence[Offered], mask: Tensor) -> Tensor:
        return self.transformer(self.block(x, embedding), offered, mask)


@dataclass(frozen=True)
class Told:
    """What a UNet computes from its condition alone, for b rows: the same at every step of a sampling.

    `offered`: keys and values of the tokens for each level's layers; `mask` (b, n) of the tokens; `pooled`
    (b, embedding) and `map` (b, channels, h, h) where the network has them.
    """

    offered: list[list[Offered]]
    mask: Tensor
    pooled: Tensor | None
    map: Tensor | None


class UNet(nn.Module):
    """Predicts from x_t (b, inputs, h, h), t (b,) and a condition of b rows: (b, inputs, h, h).

    The arguments are those of the configuration's `ldm.network` section. The width grows by `multipliers`, one per
    resolution; a transformer follows every residual block. `most`: the most objects in a training picture.
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
        order: bool = False,
        places: bool = False,
        turns: bool = False,
        pooled: bool = False,
        dropout: float = 0.0,
        self_condition: bool = False,
    ):
        super().__init__()
        embedding = 4 * channels
        widths = [channels * m for m in multipliers]

        def level(entering: int, leaving: int) -> Level:
            several = heads_at(leaving, heads, head_width)
            return Level(entering, leaving, embedding, several, context, depth, expansion, dropout)

        self.inputs, self.channels, self.self_condition = inputs, channels, self_condition
        self.places, self.turns = places, turns
        self.feature_widths = [width for width in widths for _ in range(blocks)] + widths[-1:]
        self.labels = Tokens(classes, context, condition, most, order, places, turns)
        self.time = nn.Sequential(nn.Linear(channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.pooled = nn.Linear(context, embedding) if pooled else None
        self.enter = conv3x3(inputs * (1 + self_condition), channels)
        self.raster = Raster(classes, context, channels, turns) if places else None
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips = self._add_down(channels, widths, blocks, level)
        self.middle = level(widths[-1], widths[-1])
        self.middle_end = ResidualBlock(widths[-1], widths[-1], embedding, dropout=dropout)
        self._add_up(skips, widths, blocks, level)
        self.leave = nn.Sequential(normalisation("group", widths[0]), nn.SiLU(), zero_init(conv3x3(widths[0], inputs)))

    def _add_down(self, width: int, widths: list[int], blocks: int, level: Callable[[int, int], Level]) -> list[int]:
        """Fills `down` and returns the widths of the maps that `up` takes over, in order."""
        skips = [width]
        for i, outputs in enumerate(widths):
            if i > 0:
                self.down.append(Downsample(width, width))
                skips.append(width)
            for _ in range(blocks):
                self.down.append(level(width, outputs))
                width = outputs
                skips.append(width)
        return skips

    def _add_up(self, skips: list[int], widths: list[int], blocks: int, level: Callable[[int, int], Level]) -> None:
        """Fills `up`, whose blocks take over maps of the widths `skips`, the last first."""
        width = widths[-1]
        for i, outputs in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(level(width + skips.pop(), outputs))
                width = outputs
            if i > 0:
                self.up.append(Upsample(width, width))

    @property
    def _levels(self) -> list[Level]:
        """All levels, in the order in which `forward` calls them."""
        return [module for module in (*self.down, self.middle, *self.up) if isinstance(module, Level)]

    def told(self, condition: Condition, keep: Tensor | None, side: int) -> Told:
        """Computes what depends only on the condition of b rows, for maps of `side` cells. `keep` as in `forward`."""
        if keep is None:
            keep = torch.ones(len(condition), dtype=torch.bool, device=condition.device)
        context, mask, total = self.labels(condition, keep)
        return Told(
            [level.transformer.offered(context) for level in self._levels],
            mask,
            None if self.pooled is None else self.pooled(total),
            None if self.raster is None else self.raster(condition, keep, side),
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: Condition | Told,
        keep: Tensor | None = None,
        estimate: Tensor | None = None,
    ) -> Tensor:
        """`keep` (b,) bool, all True by default: rows with False are unconditional. A Told condition has its own.

        `estimate`, with self_condition: the last prediction of x_0 (b, inputs, h, h), zeros where there was none.
        """
        told = condition if isinstance(condition, Told) else self.told(condition, keep, x.shape[2])
        offered = iter(told.offered)
        skips, x, embedding = self._down(x, t, told, offered, estimate)
        for module in self.up:
            if isinstance(module, Level):
                x = module(torch.cat([x, skips.pop()], dim=1), embedding, next(offered), told.mask)
            else:
                x = module(x)
        return self.leave(x).float()

    def features(self, x: Tensor, t: Tensor, condition: Condition) -> list[Tensor]:
        """Returns the maps (b, width, h, h) after each level on the way down and after the middle: `feature_widths`."""
        told = self.told(condition, None, x.shape[2])
        skips, middle, _ = self._down(x, t, told, iter(told.offered))
        levels = [skip for module, skip in zip(self.down, skips[1:], strict=True) if isinstance(module, Level)]
        return [*levels, middle]

    def _down(
        self, x: Tensor, t: Tensor, told: Told, offered: Iterator[list[Offered]], estimate: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Returns the way up's inputs: the skips, the middle's map and the embedding. Consumes part of `offered`."""
        if self.self_condition:
            x = torch.cat([x, torch.zeros_like(x) if estimate is None else estimate], dim=1)
        embedding = self.time(sinusoidal(t, self.channels))
        if told.pooled is not None:
            embedding = embedding + told.pooled
        embedding = F.silu(embedding)
        x = self.enter(x)
        if told.map is not None:
            x = x + told.map
        skips = [x]
        for module in self.down:
            x = module(x, embedding, next(offered), told.mask) if isinstance(module, Level) else module(x)
            skips.append(x)
        x = self.middle_end(self.middle(x, embedding, next(offered), told.mask), embedding)
        return skips, x, embedding
