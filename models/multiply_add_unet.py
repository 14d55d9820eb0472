"""The third report's U-Net on pictures, with x' = c x + t: a label and a time embedding condition each block."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.condition import Condition
from models.unet import Raster

POOL = 8  # by which the quarter map is pooled, divided by the stem: to a 32nd of the picture
MAP = 16  # most cells a side of the map of places, where a blob's deviation is a twentieth of the picture


class ExactLinear(nn.Linear):
    """A linear layer that computes in float32 under autocast, which would round its input to 8 bits: (b, i) -> (b, o).

    Autocast changes matrix products, but neither products of elements nor their sums.
    """

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] * self.weight).sum(2) + self.bias


class Embedding(nn.Module):
    """Two linear layers with a GELU between: (b, inputs) float32 -> (b, outputs, 1, 1).

    `exact`: the first layer computes in float32. In bfloat16 128 values are left of t / T between a half and one.
    """

    def __init__(self, inputs: int, outputs: int, exact: bool = False):
        super().__init__()
        first = (ExactLinear if exact else nn.Linear)(inputs, outputs)
        self.body = nn.Sequential(first, nn.GELU(), nn.Linear(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)[:, :, None, None]


class ConvBlock(nn.Module):
    """Conv - batch norm - GELU, twice. `residual` adds the input (the first half if widths differ), over sqrt 2."""

    def __init__(self, inputs: int, outputs: int, residual: bool = False):
        super().__init__()
        self.residual, self.same = residual, inputs == outputs

        def half(entering: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(entering, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.GELU())

        self.first, self.second = half(inputs), half(outputs)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(first)
        return ((x if self.same else first) + second) / 2**0.5 if self.residual else second


class Up(nn.Module):
    """Doubles the resolution: a transposed 2x2 convolution of stride 2 and two blocks, over the map and its skip."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.grow = nn.ConvTranspose2d(inputs, outputs, 2, 2)
        self.blocks = nn.Sequential(ConvBlock(outputs, outputs, True), ConvBlock(outputs, outputs, True))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.blocks(self.grow(torch.cat([x, skip], dim=1)))


@dataclass(frozen=True)
class Told:
    """What the network computes from its condition alone, for b rows: the same at every step of a sampling.

    `labels`: the factors (b, width, 1, 1) of each conditioned block. `map` if it has places: (b, width, n, n), where n
    is MAP, or the blocks' own number of cells if that is less.
    """

    labels: dict[str, Tensor]
    map: Tensor | None


class MultiplyAddUNet(nn.Module):
    """Maps x_t (b, 3, s, s), t (b,) and the label sets of a condition (b rows) to a prediction (b, 3, s, s).

    `paths`: `up` conditions the up blocks, as usual, `up+down` also the down blocks. The picture's side must be a
    multiple of 32. A dropped label set is all zeros. With `places` a map of the objects' places is added after the
    first block, and so reaches all others; it starts at zero, and the other weights start as without it.

    `stem` is 1 in the report. With 2, 4 or 8, each square of `stem` pixels a side is one cell of 3 stem^2 channels
    (unshuffled), and all blocks work on these cells: the arithmetic falls nearly with the square of `stem`. The
    smallest map's side stays a 32nd of the picture's.
    """

    def __init__(
        self,
        classes: int,
        timesteps: int,
        width: int = 256,
        paths: str = "up+down",
        places: bool = False,
        stem: int = 1,
    ):
        super().__init__()
        self.timesteps, self.conditions_down, self.places = timesteps, paths == "up+down", places
        self.stem, self.pool, values = stem, POOL // stem, 3 * stem**2
        self.enter = ConvBlock(values, width, residual=True)
        self.down1, self.down2 = ConvBlock(width, width, True), ConvBlock(width, 2 * width, True)
        self.grow = nn.Sequential(
            nn.ConvTranspose2d(2 * width, 2 * width, self.pool, self.pool), nn.GroupNorm(8, 2 * width), nn.ReLU()
        )
        self.up1, self.up2 = Up(4 * width, width), Up(2 * width, width)
        self.leave = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.ReLU(),
            nn.Conv2d(width, values, 3, padding=1),
        )
        widths = {"up1": 2 * width, "up2": width} | ({"down1": width, "down2": width} if self.conditions_down else {})
        self.label = nn.ModuleDict({name: Embedding(classes, w) for name, w in widths.items()})
        self.time = nn.ModuleDict({name: Embedding(1, w, exact=True) for name, w in widths.items()})
        self.apply(_initialise)
        self.raster = Raster(classes, width, width) if places else None  # last: the other weights start as without it

    def told(self, condition: Condition, keep: Tensor | None, side: int) -> Told:
        """Computes what depends only on the condition of b rows. `side`: the pictures'; `keep` as in `forward`."""
        if keep is None:
            keep = torch.ones(len(condition), dtype=torch.bool, device=condition.device)
        labels = condition.labels * keep[:, None]
        factors = {name: embedding(labels) for name, embedding in self.label.items()}
        cells = min(MAP, side // self.stem)
        return Told(factors, None if self.raster is None else self.raster(condition, keep, cells))

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Told, keep: Tensor | None = None) -> Tensor:
        """`keep` (b,) bool, all True by default: rows with False are unconditional. A Told condition has its own."""
        told = condition if isinstance(condition, Told) else self.told(condition, keep, x.shape[2])
        time = t.float()[:, None] / self.timesteps

        def conditioned(name: str, x: Tensor) -> Tensor:
            return told.labels[name] * x + self.time[name](time) if name in told.labels else x

        entered = self.enter(F.pixel_unshuffle(x, self.stem))
        if told.map is not None:  # resized after its 1x1 convolution, which runs once per cell
            entered = entered + F.interpolate(told.map, entered.shape[2:])
        half = F.max_pool2d(self.down1(conditioned("down1", entered)), 2)
        quarter = F.max_pool2d(self.down2(conditioned("down2", half)), 2)
        hidden = F.gelu(F.avg_pool2d(quarter, self.pool))
        h = self.up1(conditioned("up1", self.grow(hidden)), quarter)
        h = self.up2(conditioned("up2", h), half)
        return F.pixel_shuffle(self.leave(torch.cat([h, entered], dim=1)), self.stem).float()


def _initialise(module: nn.Module) -> None:
    """Like DCGAN (arXiv 1511.06434, section 4): draws convolutions from N(0, 0.02), norms from N(1, 0.02); biases 0."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        assert module.bias is not None
        nn.init.normal_(module.weight, 0.0, 0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
