"""Exponential moving average of a network's weights."""

from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


class Ema(Generic[Network]):
    """Keeps `average`, a copy of a network whose parameters trail the network's.

    The decay at update n is min(decay, (1 + n) / (10 + n)), so that the first steps are forgotten quickly. Buffers
    (a codebook, batch-norm statistics) are copied, not averaged: they are averages already.
    """

    def __init__(self, network: Network, decay: float):
        self.network, self.decay = network, decay
        self.average = deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)
        for mine, theirs in zip(self.average.buffers(), self.network.buffers(), strict=True):
            mine.copy_(theirs)
