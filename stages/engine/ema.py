"""Exponential moving average of a network's weights."""

from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class Ema(Generic[Network]):
    """Keeps `average`, a copy of a network whose parameters trail the network's.

    The decay at update n is min(decay, (1 + n) / (10 + n)), so that the first steps are forgotten quickly. Buffers
    (a codebook, batch-norm statistics) are copied, not averaged: they are averages already.

    The lists of tensors are made once, so the network must keep its tensors: what changes them works in place.
    """

    def __init__(self, network: Network, decay: float):
        self.network, self.decay = network, decay
        self.average = deepcopy(network).eval().requires_grad_(False)
        self._parameters: tuple[list[Tensor], list[Tensor]] = [*self.average.parameters()], [*network.parameters()]
        self._buffers: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}  # a kernel copies those of one type
        for mine, theirs in zip(self.average.buffers(), network.buffers(), strict=True):
            for tensor, tensors in zip((mine, theirs), self._buffers.setdefault(mine.dtype, ([], [])), strict=True):
                tensors.append(tensor)

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = self._parameters
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        for mine, theirs in self._buffers.values():
            torch._foreach_copy_(mine, theirs)
