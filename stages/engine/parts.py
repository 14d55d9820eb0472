"""Splits this process's rows of a batch into parts, worked through one after the other: gradient accumulation.

A step prepares its inputs for all rows at once, with the same random numbers as without parts; only what holds
activations runs part by part. `Optimizer.add` then sums the parts' gradients.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stages.engine import distributed
from stages.engine.errors import UserError


def parts_of(rows: int, parts: int) -> list[slice]:
    """Returns the rows of each of `parts` equal parts. Raises UserError if `rows`, a process's share, has none."""
    if rows % parts:
        world = distributed.world_size()
        raise UserError(
            f"a batch of {rows * world} cannot be shared by {world} process(es) with accumulate={parts} parts each: "
            f"choose a multiple of {world * parts}"
        )
    size = rows // parts
    return [slice(first, first + size) for first in range(0, rows, size)]


def means(found: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the mean of each metric over the parts. One part's metrics are returned as they are."""
    if len(found) == 1:
        return dict(found[0])
    return {name: torch.stack([part[name].detach() for part in found]).mean(dim=0) for name in found[0]}
