"""Several processes under `torchrun`; one process is the same code with world size 1.

A batch is always the *global* batch. Each process computes its slice of it, and gradients are averaged in one
flat all-reduce: no wrapper around the networks, so a critic's combined backward (gradient penalty included) and
an autoencoder with a quantiser are treated alike.
"""

import os
from collections.abc import Callable, Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from stages.engine.errors import UserError

PATIENCE = timedelta(hours=12)  # to pack millions of pictures


def start(device: torch.device) -> None:
    """Joins `torchrun`'s process group, be it of one. Call before any network is built: the quantiser asks."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if (several or dist.is_torchelastic_launched()) and not dist.is_initialized():
        own = {"device_id": device} if device.type == "cuda" else {}
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **own)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def processes() -> int | str:
    """How many, for a run's identity: one of `torchrun`'s is told from one without, whose batch norm is torch's own."""
    return "1 of torchrun" if dist.is_initialized() and world_size() == 1 else world_size()


def is_main() -> bool:
    """True in the one process that writes files and talks."""
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def patient_barrier() -> Callable[[], None]:
    """A barrier for what one process does while the others wait for hours: made by all before, passed by all after."""
    if world_size() == 1:
        return lambda: None
    group = dist.new_group(timeout=PATIENCE, backend="gloo")
    return lambda: dist.barrier(group)


def share_of(batch: int) -> slice:
    """This process's rows of a global batch of `batch` rows."""
    world = world_size()
    if batch % world:
        raise UserError(f"a batch of {batch} cannot be shared by {world} processes: choose a multiple of {world}")
    size = batch // world
    return slice(rank() * size, (rank() + 1) * size)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces every gradient by its mean over the processes, in one flat all-reduce."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over the processes."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value


def average(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    return total(value) / world_size() if world_size() > 1 else value


def any_process(value: int, device: torch.device) -> int:
    """The largest of an integer over the processes: all agree whether, and by what, they were asked to stop."""
    if world_size() == 1:
        return value
    flag = torch.tensor(value, device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return int(flag)


class _GlobalBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, in float32, on any device (torch's own is for GPUs only)."""

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
    """True for a network made by `with_global_batch_norms` under torchrun, where it has any batch norm."""
    return any(isinstance(module, _GlobalBatchNorm) for module in network.modules())


def with_global_batch_norms(network: nn.Module) -> nn.Module:
    """The network, whose batch norms see the whole global batch under `torchrun`.

    Under one process of it too: torch's own batch norm is off by .2 % of a gradient on channels_last pictures on a
    CPU, so that a run of one process is the run of two only where both use this one.
    """
    if dist.is_initialized():
        for module in network.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = _GlobalBatchNorm  # same parameters, same names: exports do not change
    return network
