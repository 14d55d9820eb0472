"""Times of contenders in turn, arithmetic as torch counts it, and the machine's own rates."""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from stages.engine.command import Context

Work = Callable[[], object]
REPEATS = 7
LONGEST = 60.0  # seconds of one contender in all: a slow one is measured fewer times


def add_seconds(parser: argparse.ArgumentParser) -> None:
    """The flag of commands that measure."""
    parser.add_argument("--seconds", type=float, default=1.5, help="of one time of the medians (default: %(default)s)")


def _seconds(work: Work, device: torch.device, calls: int) -> float:
    """Mean seconds of a call."""
    began = time.perf_counter()
    for _ in range(calls):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / calls


def interleaved(contenders: dict[str, Work], context: Context) -> dict[str, list[float]]:
    """Seconds of a call, `REPEATS` times: all contenders in turn, after two turns of a call that warm up.

    In turn, so that what else the machine does falls on all alike; as many calls a time as take `--seconds`, so that
    a loader's workers have to keep up.
    """
    device, at_least = context.device, context.arguments.seconds
    times: dict[str, list[float]] = {name: [] for name in contenders}
    calls = {}
    for _ in range(2):
        for name, work in contenders.items():
            calls[name] = max(1, math.ceil(at_least / max(_seconds(work, device, 1), 1e-6)))
    for _ in range(REPEATS):
        for name, work in contenders.items():
            if sum(times[name]) * calls[name] < LONGEST:
                times[name].append(_seconds(work, device, calls[name]))
    return times


class _OneModule(ModuleTracker):
    """No count by module: its hooks cannot be where `autograd.grad` is, as in a gradient penalty."""

    def __enter__(self) -> "_OneModule":
        return self

    def __exit__(self, *_) -> None:
        pass


def shown(seconds: float) -> str:
    """Seconds for a table."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def flops(work: Work) -> int:
    """Multiplications and additions of one call, as torch counts them."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _OneModule()
    with counter:
        work()
    return counter.get_total_flops()


def rate(work: Work, context: Context) -> float:
    """FLOP/s of a call."""
    return flops(work) / statistics.median(interleaved({"": work}, context)[""])


def convolution_rate(context: Context, batch: int, channels: int, side: int, repeat: int = 4) -> float:
    """FLOP/s of 3x3 convolutions (batch, channels, side, side), forward and backward, in the stages' precision."""
    layers = nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(repeat)))
    layers.to(context.device, memory_format=torch.channels_last)
    x = torch.randn(batch, channels, side, side, device=context.device).to(memory_format=torch.channels_last)
    x.requires_grad_()

    def work() -> None:
        with context.autocast():
            y = layers(x)
        y.backward(torch.ones_like(y))

    return rate(work, context)


def matrix_rate(context: Context, side: int = 2048) -> float:
    """FLOP/s of a square matrix product in the stages' precision."""
    a, b = (torch.randn(side, side, device=context.device, dtype=context.dtype) for _ in range(2))

    def work() -> Tensor:
        return a @ b

    return rate(work, context)
