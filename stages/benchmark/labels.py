"""Measures what labels of very many pictures cost: start-up, a batch's indices, memory. Their pixels take no disk."""

import json
import resource
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from data.labels import CLEVR
from models.layouts import LayoutPrior
from stages.engine.command import Context
from stages.engine.config import derive
from stages.engine.dataset import load_dataset
from stages.engine.drawn import CHUNK, Drawn
from stages.engine.draws import Draws
from stages.engine.export import Computed, described, safetensors_header, sha256_of
from stages.engine.machine import peak_memory, reset_peak
from stages.engine.packs import LABELS, TRUSTED, note_checked

PACK = "labels.safetensors"
BLOCK = 4096  # different pictures; the others repeat them
BATCH, STEPS = 64, 200


def _block() -> dict[str, Tensor]:
    """Returns objects and places of BLOCK pictures with one to three objects."""
    random = torch.Generator().manual_seed(0)
    slots = torch.arange(3) < torch.randint(1, 4, (BLOCK, 1), generator=random)
    chosen = torch.rand(BLOCK, len(CLEVR), generator=random).argsort(1)[:, :3]
    places = torch.rand(BLOCK, 3, 2, generator=random)
    return {
        "objects": torch.where(slots, chosen, -1).to(torch.int8),
        "places": torch.where(slots[..., None], places, -1.0),
    }


def write_labels(path: Path, count: int, size: int) -> None:
    """Writes a pack of `count` pictures whose pixels are a hole in the file, and a file of label sets beside it."""
    block = _block()
    held_out = torch.arange(count) >= count - count // 20

    def repeated(name: str) -> Iterator[Tensor]:
        whole = block[name].repeat(CHUNK // BLOCK, *[1] * (block[name].ndim - 1))
        for first in range(0, count, CHUNK):
            yield whole[: count - first]

    parts = {
        "held_out": lambda: iter([held_out]),
        "objects": lambda: repeated("objects"),
        "places": lambda: repeated("places"),
    }
    like = {
        "held_out": held_out,
        **{name: tensor[:1].expand(count, *tensor.shape[1:]).to("meta") for name, tensor in block.items()},
        "images": torch.empty(count, 3, size, size, dtype=torch.uint8, device="meta"),
    }
    stored = {name: Computed(like[name].dtype, tuple(like[name].shape), parts[name]) for name in LABELS}
    about = {
        "objects": CLEVR.names,
        "places": "made up",
        "size": size,
        "pictures_sha256": f"a hole of {count}",
        "places_sha256": f"made up for {count}",
        "labels_sha256": sha256_of(stored),
    }
    images = like["images"]
    if images.nbytes <= TRUSTED:  # else the pixels are not checked
        empty = torch.zeros(1, *images.shape[1:], dtype=torch.uint8)
        stored["images"] = Computed(images.dtype, tuple(images.shape), lambda: (empty for _ in range(count)))
    header, names = safetensors_header(like, described(about, sha256_of(stored)))
    with open(path, "wb") as file:
        file.write(header)
        for name in names:
            if name == "images":
                file.seek(images.nbytes, 1)
                continue
            for part in parts[name]():
                file.write(part.contiguous().view(torch.uint8).numpy().data)
    note_checked(path)
    (path.parent / "test.json").write_text(json.dumps([["red cube"]]))


def read_labels(context: Context, work: Path) -> tuple[float, float, float, float, int, int]:
    """Measures seconds and CPU seconds to start, seconds for a batch's indices, and for its condition and labels too.

    The last two are peak bytes: held, and held together with what is mapped. Starting is all that an LDM does before
    its networks: the pack is opened and its labels checked, draws by label and the prior of places are made.
    """
    settings = [f"data.folder={work / PACK}", "data.conditions=[test]", "data.withhold=0"]
    config = derive(context.config, settings)
    reset_peak(context.device)
    began, used = time.perf_counter(), time.process_time()
    dataset = load_dataset(config, context.device)
    rows = Drawn(dataset.conditions, "by-labels")
    LayoutPrior.of(dataset.conditions)
    assert dataset.most_objects == 3
    Draws(0, "labels", 0, BATCH, context.device).pictures(rows)  # the first one of an epoch
    started, used = time.perf_counter() - began, time.process_time() - used
    times: dict[str, list[float]] = {"indices": [], "whole": []}
    for step in range(1, STEPS + 1):
        began = time.perf_counter()
        index, _ = Draws(0, "labels", step, BATCH, context.device).pictures(rows)
        times["indices"].append(time.perf_counter() - began)
        assert dataset.conditions[index].labels.shape[0] == BATCH
        times["whole"].append(time.perf_counter() - began)
    held = peak_memory(context.device)
    mapped = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return started, used, statistics.median(times["indices"]), statistics.median(times["whole"]), held, mapped
