"""Averages gradients over processes, in buckets, while a step's last backward pass still computes others."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stages.engine import distributed

BUCKET = 4 * 2**20  # bytes: the networks here have 5 to 45 MB of gradients


def in_buckets(parameters: Sequence[Tensor], size: int = BUCKET) -> list[list[Tensor]]:
    """Groups parameters, the last first as backward passes reach them, into buckets of about `size` bytes."""
    buckets: list[list[Tensor]] = []
    room = 0
    for parameter in reversed(parameters):
        if room <= 0:
            buckets.append([])
            room = size
        buckets[-1].append(parameter)
        room -= parameter.numel() * parameter.element_size()
    return buckets


class GradientAverage:
    """Replaces every gradient with its mean over the processes. In one process it does nothing.

    Call `begin` before the step's last backward pass and `finish` after it; without `begin` everything is done in
    `finish`. A bucket is sent when its gradients are complete and the buckets before it were sent, so that all
    processes send them in the same order; one that gets no gradient in that pass holds back those after it.
    torch's DistributedDataParallel does the same for a module's own forward pass; a critic's loss with its gradient
    penalty and an autoencoder with a quantiser have none.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], size: int = BUCKET):
        self.buckets = in_buckets(parameters, size) if distributed.world_size() > 1 else []
        self._place = {id(p): place for place, bucket in enumerate(self.buckets) for p in bucket}
        self._missing: list[int] | None = None  # gradients that each bucket waits for, during the last backward pass
        self._next = 0  # the bucket that is sent next
        self._sent: list[tuple[list[Tensor], Tensor, dist.Work]] = []
        for parameter in (p for bucket in self.buckets for p in bucket):
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def begin(self) -> None:
        self._missing = [len(bucket) for bucket in self.buckets]

    def finish(self) -> None:
        """Sends what is left, as a pass may give some parameters no gradient, and waits for all."""
        while self._next < len(self.buckets):
            self._send()
        for gradients, flat, work in self._sent:
            work.wait()
            flat /= distributed.world_size()
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))
        self._missing, self._next, self._sent = None, 0, []

    def _arrived(self, parameter: Tensor) -> None:
        if self._missing is None:
            return
        self._missing[self._place[id(parameter)]] -= 1
        while self._next < len(self.buckets) and self._missing[self._next] == 0:
            self._send()

    def _send(self) -> None:
        gradients = [p.grad for p in self.buckets[self._next] if p.grad is not None]
        self._next += 1
        if gradients:
            flat = torch.cat([g.flatten() for g in gradients])
            self._sent.append((gradients, flat, dist.all_reduce(flat, async_op=True)))
