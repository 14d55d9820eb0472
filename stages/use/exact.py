"""Keeps float32 products exact for a while, whichever of torch's two ways the process chose otherwise."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch

# Where torch keeps the newer settings, `fp32_precision`. A product has a setting of its own, or takes a general one.
GENERAL: tuple[Any, ...] = (torch.backends, torch.backends.cudnn)
PRODUCTS: tuple[Any, ...] = attrgetter("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv")(
    torch.backends
)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Context manager: float32 products are exact within, and torch's settings are what they were after.

    The older settings are changed too where torch can read them: it refuses to read them where the newer ones differ.
    """
    precision = _readable(torch.get_float32_matmul_precision)
    tf32 = _readable(lambda: torch.backends.cudnn.allow_tf32)
    kept = []
    try:
        for part in GENERAL:  # out of the way, so that a product's own setting is read below
            kept.append((part, part.fp32_precision))
            part.fp32_precision = "none"
        kept += [(part, part.fp32_precision) for part in PRODUCTS]
        if precision not in (None, "highest"):
            torch.set_float32_matmul_precision("highest")
        if tf32:
            torch.backends.cudnn.allow_tf32 = False
        for part in PRODUCTS:
            part.fp32_precision = "ieee"
        yield
    finally:
        if precision not in (None, "highest"):
            torch.set_float32_matmul_precision(precision)
        if tf32:
            torch.backends.cudnn.allow_tf32 = True
        for part, value in kept:  # after the older settings, which change these
            part.fp32_precision = value


def _readable(setting: Callable[[], Any]) -> Any:
    """Returns an older setting, or None where the process has set the newer one to something else."""
    try:
        return setting()
    except RuntimeError:
        return None
