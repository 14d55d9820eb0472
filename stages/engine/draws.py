"""Draws random numbers as a function of (seed, stream, step): a resumed run repeats them without stored state.

Every random tensor is drawn for the global batch, or for whole blocks of it, and cut to this process's rows, so that
two processes see what one process with the same global batch sees.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from stages.engine import distributed
from stages.engine.drawn import Drawn
from stages.engine.transfer import sent

HOST = torch.device("cpu")
LISTED = 2**24  # pictures up to which an epoch's order is a list; beyond, it is computed: a list of 10^8 takes 8 s
ROUNDS = 6  # of the computed order
WIDE, BLOCK = 2048, 256  # rows: a wider batch is drawn in blocks, each from a generator of its own


def seed_of(*key: object) -> int:
    """Returns a 63-bit seed from any key, the same on every machine (unlike `hash`)."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@lru_cache(maxsize=4)  # this epoch and the next, on the device and for what is read ahead
def _permutation(seed: int, stream: str, epoch: int, size: int, device: torch.device) -> Tensor:
    """Draws an epoch's order on the host, the same for every device, and keeps it on the device: a step copies none."""
    generator = torch.Generator().manual_seed(seed_of(seed, stream, "order", epoch))
    return sent(torch.randperm(size, generator=generator), device)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Returns 64 well mixed bits of each number (the finaliser of SplitMix64, doi 10.1145/2660193.2660195)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=4)
def _round_keys(seed: int, stream: str, epoch: int) -> tuple[np.uint64, ...]:
    return tuple(np.uint64(seed_of(seed, stream, "order", epoch, number)) for number in range(ROUNDS))


def computed_order(positions: Tensor, size: int, seed: int, stream: str, epoch: int) -> Tensor:
    """Returns the pictures at `positions` (b,) of an epoch's order of `size` pictures, without listing the others.

    A Feistel network permutes the numbers of an even count of bits, fewer than 4 x size numbers; what falls outside the
    set is permuted again until it falls inside (cycle walking, doi 10.1007/3-540-45760-7_9).
    """
    half = np.uint64(((size - 1).bit_length() + 1) // 2)
    mask = (np.uint64(1) << half) - np.uint64(1)

    def permuted(numbers: np.ndarray) -> np.ndarray:
        left, right = numbers >> half, numbers & mask
        for key in _round_keys(seed, stream, epoch):
            left, right = right, left ^ (_mixed(right + key) & mask)
        return left << half | right

    found = permuted(positions.numpy().astype(np.uint64))
    while (outside := found >= size).any():
        found[outside] = permuted(found[outside])
    return torch.from_numpy(found.astype(np.int64))


def batch_indices(seed: int, stream: str, step: int, batch: int, size: int, device: torch.device = HOST) -> Tensor:
    """Returns the indices of global batch `step`: (batch,) int64. Epochs are seeded permutations laid end to end."""
    first, last = step * batch, (step + 1) * batch
    parts = []
    while first < last:
        epoch, offset = divmod(first, size)
        if size <= LISTED:
            parts.append(_permutation(seed, stream, epoch, size, device)[offset : offset + last - first])
        else:
            positions = torch.arange(offset, min(size, offset + last - first))
            parts.append(sent(computed_order(positions, size, seed, stream, epoch), device))
        first += len(parts[-1])
    return torch.cat(parts)


@dataclass(frozen=True)
class Coming:
    """A batch of pictures that a later step may draw: its number tells in advance which pictures those are."""

    seed: int
    stream: str
    number: int  # of the batch; a step that takes several draws them one after the other
    batch: int
    rows: tuple[int, int]  # this process's
    drawn: Drawn

    @property
    def key(self) -> tuple:
        return self.seed, self.stream, self.number, self.batch, self.rows, id(self.drawn)

    def after(self, more: int) -> "Coming":
        return replace(self, number=self.number + more)

    def index(self) -> Tensor:
        """Returns the pictures' indices (b,) on the host."""
        draws = batch_indices(self.seed, self.stream, self.number, self.batch, len(self.drawn))
        return self.drawn.on_host(draws[slice(*self.rows)])


class Draws:
    """Draws the random numbers of one step.

    Each call draws for the global batch `(batch, ...)` and returns this process's rows. Calls are distinguished by
    their order, so a step must make the same calls each time it is computed. A batch of WIDE rows or more is drawn in
    blocks, and a process draws only the blocks of its rows: the time for it does not grow with the processes.
    """

    def __init__(self, seed: int, stream: str, step: int, batch: int, device: torch.device):
        self.seed, self.stream, self.step, self.batch, self.device = seed, stream, step, batch, device
        self._generator = torch.Generator(device).manual_seed(seed_of(seed, stream, step))
        self._rows, self._calls = distributed.share_of(batch), 0

    def pictures(self, drawn: Drawn, part: int = 0, parts: int = 1) -> tuple[Tensor, Coming]:
        """Draws this process's pictures (batch / world,) of batch `part` of `parts`, and says which batch that is."""
        number, rows = self.step * parts + part, (self._rows.start, self._rows.stop)
        index = drawn[self.indices(len(drawn), part, parts)]
        return index, Coming(self.seed, self.stream, number, self.batch, rows, drawn)

    def _own(self, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        """Returns this process's rows of draw(rows, generator)."""
        rows = self._rows
        if self.batch < WIDE:
            return draw(self.batch, self._generator)[rows]
        self._calls += 1
        first, last = rows.start // BLOCK, -(-rows.stop // BLOCK)
        blocks = []
        for block in range(first, last):
            seed = seed_of(self.seed, self.stream, self.step, self._calls, "block", block)
            blocks.append(draw(min(BLOCK, self.batch - block * BLOCK), self._generator.manual_seed(seed)))
        return torch.cat(blocks)[rows.start - first * BLOCK : rows.stop - first * BLOCK]

    def indices(self, size: int, part: int = 0, parts: int = 1) -> Tensor:
        """Returns this process's (batch / world,) indices into a set of `size`: batch `part` of the step's `parts`."""
        step = self.step * parts + part
        return batch_indices(self.seed, self.stream, step, self.batch, size, self.device)[self._rows]

    def normal(self, *shape: int) -> Tensor:
        """Draws (batch / world, *shape) from N(0, 1)."""
        return self._own(lambda rows, g: torch.randn(rows, *shape, generator=g, device=self.device))

    def uniform(self, *shape: int) -> Tensor:
        """Draws (batch / world, *shape) from U[0, 1)."""
        return self._own(lambda rows, g: torch.rand(rows, *shape, generator=g, device=self.device))

    def stratified(self) -> Tensor:
        """Draws (batch / world,) from U[0, 1), one in each of `batch` equal parts (arXiv 2107.00630, appendix I.1)."""
        places = torch.arange(self.batch, device=self.device)[self._rows]
        return (places + self.uniform()) / self.batch

    def number(self, high: int, name: str) -> int:
        """Draws one integer from {0, ..., high - 1} for the whole step, on the host, without waiting for the device."""
        return seed_of(self.seed, self.stream, self.step, name) % high

    def integers(self, high: int, *shape: int) -> Tensor:
        """Draws (batch / world, *shape) int64 from {0, ..., high - 1}."""
        return self._own(lambda rows, g: torch.randint(high, (rows, *shape), generator=g, device=self.device))


def sample_generator(*key: object) -> torch.Generator:
    """Returns a CPU generator for one sample from its key: a sample does not depend on its batch or device."""
    return torch.Generator().manual_seed(seed_of(*key))
