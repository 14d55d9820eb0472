"""A set's latents, encoded once by all processes together: kept in memory, or in files that are mapped."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from data.joined import Joined, Rows
from stages.engine import distributed
from stages.engine.command import Context
from stages.engine.export import load_export, save_export
from stages.engine.lock import locked
from stages.engine.log import progress, say
from stages.engine.packs import LATENTS, TRUSTED, note_checked, say_unused_latents, was_checked

BATCH = 256  # pictures encoded at once
IN_MEMORY = 2 * 2**30  # bytes of float32 latents that `auto` keeps in memory: a million pictures' of 64x64
PART = 2**16  # pictures a file: what a kill loses at most of each process; a multiple of BATCH

Encode = Callable[[Tensor], Tensor]  # pictures (b, 3, s, s) uint8 -> normalised latents (b, c, s/8, s/8) float32


def in_pack(context: Context, count: int, shape: tuple[int, ...]) -> bool:
    """Returns True if the latents of `count` pictures, each of `shape`, belong into files by `data.latents`."""
    kind = context.config.data.latents
    return kind == "pack" if kind != "auto" else 4 * count * torch.Size(shape).numel() > IN_MEMORY


def _encoded(encode: Encode, images: Rows) -> Iterator[Tensor]:
    for part in images.split(BATCH):
        yield encode(part)


def in_memory(encode: Encode, images: Rows, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Encodes a set (n, 3, s, s) uint8 to (n, *shape) float32 on the device. Processes share the batches."""
    world, rank = distributed.world_size(), distributed.rank()
    if world == 1:
        return torch.cat([*_encoded(encode, images)])
    latents = torch.zeros(len(images), *shape, device=device)
    for first in range(rank * BATCH, len(images), world * BATCH):
        latents[first : first + BATCH] = encode(images[first : first + BATCH])
    return distributed.total(latents)  # each row is from one process, the others hold zeros


def from_pack(context: Context, encode: Encode, images: Rows, parents: dict[str, str]) -> Joined:
    """Returns the latents (n, c, s/8, s/8) bfloat16 of a set, mapped from files, which are encoded if they are missing.

    `parents`: hashes of pictures and autoencoder. Each process encodes every n-th file of PART pictures and writes it
    whole or not at all, so that after a kill the files that are there are not encoded again.
    """
    made_of = {**parents, "precision": str(context.dtype).removeprefix("torch.")}
    key = hashlib.sha256(" ".join(f"{name} {made_of[name]}" for name in sorted(made_of)).encode()).hexdigest()[:16]
    folder, count = Path(context.config.root) / "packs" / f"{LATENTS}{key}", -(-len(images) // PART)
    paths = [folder / f"{number:06d}.safetensors" for number in range(count)]
    together = distributed.patient_barrier()
    with locked(folder, wait=True):  # another command may encode the same; the main process holds it for all
        if distributed.is_main():
            folder.mkdir(parents=True, exist_ok=True)
        together()
        mine = [(n, path) for n, path in enumerate(paths) if n % distributed.world_size() == distributed.rank()]
        missing = [(n, path) for n, path in mine if not path.exists()]
        for number, path in progress(missing, f"encoding {len(images)} pictures into {folder}", len(missing)):
            rows = images[number * PART : (number + 1) * PART]
            latents = torch.cat([made.to("cpu", torch.bfloat16) for made in _encoded(encode, rows)])
            save_export(path, {"latents": latents}, {**made_of, "first": number * PART})
            note_checked(path)
        together()
    if missing:
        say(f"encoded {len(images)} pictures into {folder}, which can be deleted: it is then made again")
        if distributed.is_main():
            say_unused_latents(folder.parent)
    return Joined([_opened(path, len(paths)) for path in paths])


def _opened(path: Path, count: int) -> Tensor:
    """Opens one of `count` files, mapped. Its checksum is verified at each start; of many files, when one is new."""
    known = count * path.stat().st_size > TRUSTED and was_checked(path)
    tensors, _ = load_export(path, "run the same command again", mapped=True, check=not known)
    if not known:
        note_checked(path)
    return tensors["latents"]
