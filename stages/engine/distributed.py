"""Several processes under `torchrun`; one process is the same code with world size 1.

A batch is always the *global* batch. Each process computes its slice of it, and gradients are averaged in one
flat all-reduce: no wrapper around the networks, so a critic's combined backward (gradient penalty included) and
an autoencoder with a quantiser are treated alike.
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from stages.engine.errors import UserError


def start(device: torch.device) -> None:
    """Joins the process group where `torchrun` set one up. Call before any network is built: the quantiser asks."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """True in the one process that writes files and talks."""
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


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


def average(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world_size()


def any_process(value: int, device: torch.device) -> int:
    """The largest of an integer over the processes: all agree whether, and by what, they were asked to stop."""
    if world_size() == 1:
        return value
    flag = torch.tensor(value, device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return int(flag)
