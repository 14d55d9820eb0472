"""Draws random numbers as a function of (seed, stream, step): a resumed run repeats them without stored state.

Every random tensor is drawn for the global batch and cut to this process's rows, so that two processes see
what one process with the same global batch sees.
"""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

from stages.engine import distributed
from stages.engine.transfer import sent

HOST = torch.device("cpu")


def seed_of(*key: object) -> int:
    """Returns a 63-bit seed from any key, the same on every machine (unlike `hash`)."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@lru_cache(maxsize=2)
def _permutation(seed: int, stream: str, epoch: int, size: int, device: torch.device) -> Tensor:
    """Draws an epoch's order on the host, the same for every device, and keeps it on the device: a step copies none."""
    generator = torch.Generator().manual_seed(seed_of(seed, stream, "order", epoch))
    return sent(torch.randperm(size, generator=generator), device)


def batch_indices(seed: int, stream: str, step: int, batch: int, size: int, device: torch.device = HOST) -> Tensor:
    """Returns the indices of global batch `step`: (batch,) int64. Epochs are seeded permutations laid end to end."""
    first, last = step * batch, (step + 1) * batch
    parts = []
    while first < last:
        epoch, offset = divmod(first, size)
        parts.append(_permutation(seed, stream, epoch, size, device)[offset : offset + last - first])
        first += len(parts[-1])
    return torch.cat(parts)


class Draws:
    """Draws the random numbers of one step.

    Each call draws for the global batch `(batch, ...)` and returns this process's rows. Calls are distinguished by
    their order, so a step must make the same calls each time it is computed.
    """

    def __init__(self, seed: int, stream: str, step: int, batch: int, device: torch.device):
        self.seed, self.stream, self.step, self.batch, self.device = seed, stream, step, batch, device
        self._generator = torch.Generator(device).manual_seed(seed_of(seed, stream, step))
        self._rows = distributed.share_of(batch)

    def indices(self, size: int, part: int = 0, parts: int = 1) -> Tensor:
        """Returns this process's (batch / world,) indices into a set of `size`: batch `part` of the step's `parts`."""
        step = self.step * parts + part
        return batch_indices(self.seed, self.stream, step, self.batch, size, self.device)[self._rows]

    def normal(self, *shape: int) -> Tensor:
        """Draws (batch / world, *shape) from N(0, 1)."""
        return torch.randn(self.batch, *shape, generator=self._generator, device=self.device)[self._rows]

    def uniform(self, *shape: int) -> Tensor:
        """Draws (batch / world, *shape) from U[0, 1)."""
        return torch.rand(self.batch, *shape, generator=self._generator, device=self.device)[self._rows]

    def stratified(self) -> Tensor:
        """Draws (batch / world,) from U[0, 1), one in each of `batch` equal parts (arXiv 2107.00630, appendix I.1)."""
        places = torch.arange(self.batch, device=self.device)
        shifts = torch.rand(self.batch, generator=self._generator, device=self.device)
        return ((places + shifts) / self.batch)[self._rows]

    def number(self, high: int, name: str) -> int:
        """Draws one integer from {0, ..., high - 1} for the whole step, on the host, without waiting for the device."""
        return seed_of(self.seed, self.stream, self.step, name) % high

    def integers(self, high: int, *shape: int) -> Tensor:
        """Draws (batch / world, *shape) int64 from {0, ..., high - 1}."""
        return torch.randint(high, (self.batch, *shape), generator=self._generator, device=self.device)[self._rows]


def sample_generator(*key: object) -> torch.Generator:
    """Returns a CPU generator for one sample from its key: a sample does not depend on its batch or device."""
    return torch.Generator().manual_seed(seed_of(*key))
