"""Times contenders in turn, counts arithmetic as torch does, and measures the machine's rates."""

import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from stages.commands import LONGEST
from stages.engine.command import Context
from stages.engine.machine import describe_device, versions

Work = Callable[[], object]
REPEATS, LEAST = 7, 5


def _seconds(work: Work, device: torch.device, calls: int) -> float:
    """Returns the seconds of `calls` calls together."""
    began = time.perf_counter()
    for _ in range(calls):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _calls(work: Work, context: Context) -> int:
    """Returns how many calls take `--seconds`, so that a loader's workers have to keep up. Warms up."""
    calls = 1
    while _seconds(work, context.device, calls) < context.arguments.seconds:
        calls *= 2
    return calls


def interleaved(contenders: Mapping[str, Work], context: Context) -> dict[str, list[float]]:
    """Measures the seconds of a call `REPEATS` times after a warm-up, all contenders in turn.

    Taking turns spreads the machine's other load equally over all.
    """
    calls = {name: _calls(work, context) for name, work in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(REPEATS):
        for name, work in contenders.items():
            if turn < LEAST or sum(times[name]) * calls[name] < LONGEST:
                times[name].append(_seconds(work, context.device, calls[name]) / calls[name])
    return times


def shown(seconds: float) -> str:
    """Formats seconds for a table."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def machine(context: Context) -> str:
    """Describes the device and the precision."""
    return f"{describe_device(context.device)}, {str(context.dtype).removeprefix('torch.')}"


def measured_with(about: str) -> str:
    """Returns a page's first words: the machine, the date, the versions."""
    return f"{about}; {date.today()}; {', '.join(f'{k} {v}' for k, v in versions().items() if v)}"


class _OneModule(ModuleTracker):
    """Switches off counting by module, whose hooks fail with `autograd.grad`, as in a gradient penalty."""

    def __enter__(self) -> "_OneModule":
        return self

    def __exit__(self, *_) -> None:
        pass


def flops(work: Work) -> int:
    """Counts the multiplications and additions of one call, as torch does."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _OneModule()
    with counter:
        work()
    return counter.get_total_flops()


def rate(work: Work, context: Context) -> float:
    """Measures the FLOP/s of a call."""
    return flops(work) / statistics.median(interleaved({"": work}, context)[""])


def convolution_rate(context: Context, batch: int, channels: int, side: int, repeat: int = 4) -> float:
    """Measures FLOP/s of 3x3 convolutions (batch, channels, side, side), forward and backward, in stages' precision."""
    layers = nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(repeat)))
    layers = context.on_device(layers)
    x = torch.randn(batch, channels, side, side, device=context.device).to(memory_format=torch.channels_last)
    x.requires_grad_()

    def work() -> None:
        with context.autocast():
            y = layers(x)
        y.backward(torch.ones_like(y))

    return rate(work, context)


def matrix_rate(context: Context, side: int = 2048) -> float:
    """Measures FLOP/s of a square matrix product in the stages' precision."""
    a, b = (torch.randn(side, side, device=context.device, dtype=context.dtype) for _ in range(2))

    def work() -> Tensor:
        return a @ b

    return rate(work, context)
