"""Runs several processes under `torchrun`; one process runs the same code with world size 1.

A batch is always the *global* batch. Each process computes its slice, and gradients are averaged (averaging.py).
Networks are not wrapped, so a critic's combined backward pass (gradient penalty included) and an autoencoder with a
quantiser are treated alike.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from stages.engine.errors import UserError

Network = TypeVar("Network", bound=nn.Module)
PATIENCE = timedelta(hours=12)  # enough to pack millions of pictures


def start(device: torch.device) -> None:
    """Joins `torchrun`'s process group, even one of size 1. Call before any network is built: the quantiser checks."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if (several or dist.is_torchelastic_launched()) and not dist.is_initialized():
        on_gpu = device.type == "cuda"
        dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def processes() -> int | str:
    """Returns the process count for a run's identity. One process under `torchrun` differs: its batch norm does."""
    return "1 of torchrun" if dist.is_initialized() and world_size() == 1 else world_size()


def is_main() -> bool:
    """Returns True in the one process that writes files and prints."""
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def patient_barrier() -> Callable[[], None]:
    """Returns a barrier that can wait hours for one process's work. All make it before the work and call it after."""
    if world_size() == 1:
        return lambda: None
    group = dist.new_group(timeout=PATIENCE, backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # this process is a member: all are

    def wait() -> None:
        dist.barrier(group)

    return wait


def share_of(batch: int) -> slice:
    """Returns this process's rows of a global batch of `batch` rows."""
    world = world_size()
    if batch % world:
        raise UserError(f"a batch of {batch} cannot be shared by {world} processes: choose a multiple of {world}")
    size = batch // world
    return slice(rank() * size, (rank() + 1) * size)


def total(value: Tensor) -> Tensor:
    """Returns the sum of a tensor over the processes."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value


def average(value: Tensor) -> Tensor:
    """Returns the mean of a tensor over the processes."""
    return total(value) / world_size() if world_size() > 1 else value


def gathered(value: Tensor) -> Tensor:
    """Returns the rows of all processes' tensors, which must be equally many, in the order of the processes."""
    if world_size() == 1:
        return value
    found = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(found, value.contiguous())
    return torch.cat(found)


def any_process(value: int, device: torch.device) -> int:
    """Returns an integer's maximum over the processes, so that all agree whether a signal asked them to stop."""
    if world_size() == 1:
        return value
    flag = torch.tensor(value, device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return int(flag)


class _GlobalBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, in float32, on any device (SyncBatchNorm is for GPUs only)."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()
        mean = self._over_all(values)
        variance = self._over_all((values - mean).square())
        with torch.no_grad():
            count = world_size() * values.numel() / values.shape[1]
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        out = (values - mean) * torch.rsqrt(variance + self.eps)
        if self.affine:
            out = out * self.weight[:, None, None] + self.bias[:, None, None]
        return out.to(x.dtype)

    @staticmethod
    def _over_all(values: Tensor) -> Tensor:
        return all_reduce(values.mean(dim=(0, 2, 3), keepdim=True)) / world_size()


def has_global_batch_norms(network: nn.Module) -> bool:
    """Returns True if `with_global_batch_norms` has replaced any batch norm of the network, as under torchrun."""
    return any(isinstance(module, _GlobalBatchNorm) for module in network.modules())


def with_global_batch_norms(network: Network) -> Network:
    """Returns the network; under `torchrun` its batch norms then see the whole global batch.

    This includes one process under `torchrun`: on a CPU, torch's batch norm is off by .2 % of a gradient on
    channels_last pictures, so runs of one and of two processes agree only if both use this one.
    """
    if dist.is_initialized():
        for module in network.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = _GlobalBatchNorm  # same parameters, same names: exports do not change
    return network
