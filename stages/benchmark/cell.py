"""Measures one value of what grows in a separate process, so that the memory is for that value only."""

import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from models.condition import Condition
from stages.benchmark.clock import Work, interleaved
from stages.benchmark.subject import Subject
from stages.engine.command import Context, context_of
from stages.engine.config import Config
from stages.engine.dataset import placed
from stages.engine.errors import UserError, oneline
from stages.engine.export import load_export, save_export
from stages.engine.machine import peak_memory, reset_peak
from stages.engine.packs import on_disk

BATCH = 64  # pictures read at once
PACK = "pack.safetensors"
HEADS = ("ldm.network.heads=2", "ldm.network.head_width=null")  # the width need not be a multiple of a head's width
FEW = ("vae.quantizer=codebook", "vae.codebook.init=uniform")  # k-means needs as many latents as codes
# what grows -> its values, and a function of a subject and a value that returns the step to measure
AXES: dict[str, tuple[tuple[int, ...], Callable[[Subject, int], Work]]] = {
    "LDM: batch": ((16, 32, 64, 128, 256), lambda s, n: s.ldm_step(f"ldm.batch={n}")),
    "LDM: latent side": ((8, 16, 32), lambda s, n: s.ldm_step(latents=noise(s, n))),
    "LDM: width": ((48, 80, 128, 192, 256), lambda s, n: s.ldm_step(f"ldm.network.channels={n}", *HEADS)),
    "stage 1: batch": ((8, 16, 32, 64, 128), lambda s, n: s.vae_step(f"vae.batch={n}")),
    "stage 1: codes": (
        (512, 1024, 2048, 8192, 32768),
        lambda s, n: s.vae_step(f"vae.codebook.codes={n}", *FEW),
    ),
}


def noise(subject: Subject, side: int) -> Tensor:
    """Returns random latents of another size, one for each picture."""
    channels = subject.context.config.vae.latent_channels
    return torch.randn(len(subject.dataset.images), channels, side, side, device=subject.context.device)


def measured(context: Context, work: Path, axis: str, value: int) -> tuple[float, int]:
    """Returns a step's median seconds, and the peak memory in bytes while it was repeated."""
    step = AXES[axis][1](Subject(context, work, again=True), value)
    step()
    reset_peak(context.device)
    return statistics.median(interleaved({"": step}, context)[""]), peak_memory(context.device)


def in_a_process(function: Callable, context: Context, *arguments: object) -> tuple:
    """Calls function(context, *arguments) in a new process. Raises UserError if that ends without a result."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_answer, context.config, context.arguments, function, arguments).result()
        except Exception as error:  # mostly out of memory: the device's error, or the system killed the process
            raise UserError(oneline(error)[:80]) from None


def _answer(config: Config, arguments: Namespace, function: Callable, more: tuple) -> tuple:
    with ExitStack() as held:
        return function(context_of(config, arguments, time.perf_counter(), held), *more)


def write_pack(path: Path, count: int, size: int) -> None:
    """Writes an export with `count` made-up pictures: repeated noise."""
    images = on_disk(path.parent, count, 3, size, size)
    block = torch.randint(256, (4096, 3, size, size), dtype=torch.uint8)
    for part in images.split(len(block)):
        part.copy_(block[: len(part)])
    save_export(path, {"images": images}, {"pictures": count})


def read_pack(context: Context, work: Path) -> tuple[float, float, float, int]:
    """Measures seconds to open (with its checksum), per picture read at random, per stage-1 step, and peak bytes."""
    subject, path = Subject(context, work, again=True), work / PACK
    began = time.perf_counter()
    images = placed(load_export(path, "run the same command again", mapped=True)[0]["images"], context.device)
    opened = time.perf_counter() - began
    condition = Condition.of_lists([[0]], len(subject.dataset.vocabulary)).repeat(len(images)).to(context.device)
    subject.dataset = replace(subject.dataset, images=images, conditions=condition)
    read, step = subject.reading(BATCH), subject.vae_step()
    step()
    reset_peak(context.device)
    times = interleaved({"read": read, "step": step}, context)
    seconds = {name: statistics.median(found) for name, found in times.items()}
    return opened, seconds["read"] / BATCH, seconds["step"], peak_memory(context.device)
