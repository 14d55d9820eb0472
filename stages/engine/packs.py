"""Packs data folders, each once, into one file of pictures and labels, and finds, opens and joins packs."""

import hashlib
import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from data.fingerprints import content_of, fingerprint, outline
from data.images import UNKNOWN, ImageSet, index_type, read_folder
from data.joined import Joined, Rows
from data.labels import DataError, Vocabulary, read_vocabulary
from models.condition import unknown_turns
from stages.engine import distributed
from stages.engine.config import Config
from stages.engine.drawn import CHUNK
from stages.engine.errors import UserError, of_the_system
from stages.engine.export import Computed, load_export, read_about, save_export, sha256_of
from stages.engine.lock import locked
from stages.engine.log import progress, say

SUFFIX = ".safetensors"
LATENTS = "latents-"  # what the folders beside the packs that hold latents begin with
LABELS = ("held_out", "objects", "places")  # what a pack holds besides the pictures, and `turns` if any is known
DIGESTS = ("pictures_sha256", "places_sha256")
SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
TRUSTED = 4 * 2**30  # bytes from which a pack's pictures are checked once and not at each start
REMEDY = "run the same command again"


def is_pack(source: Path) -> bool:
    """Returns True if a `data.folder` is itself a pack."""
    return source.suffix == SUFFIX


def vocabulary_of(sources: Sequence[Path]) -> Vocabulary:
    """Returns the vocabulary of data folders or packs. Raises UserError or DataError if they do not agree."""
    found = [
        Vocabulary(_about(source)["objects"]) if is_pack(source) else read_vocabulary(source / "objects.json")
        for source in sources
    ]
    for source, vocabulary in zip(sources, found, strict=True):
        if vocabulary != found[0]:
            ours, first = set(vocabulary.names), set(found[0].names)
            what = f"{min(ours ^ first)!r} is in one only" if ours ^ first else "their indices differ"
            raise UserError(f"{source} and {sources[0]} name other objects ({what}); give both the same objects.json")
    return found[0]


def _about(path: Path) -> dict:
    """Returns the description of a pack that `data.folder` names. Raises UserError if it is another file."""
    about = read_about(path, "copy it again")
    if "pictures_sha256" not in about or "objects" not in about:
        raise UserError(f"{path} is not a pack of pictures; data.folder takes data folders, and packs from packs/")
    names = about["objects"]
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise UserError(f"{path} is not a pack of pictures: it names no objects, or one twice; copy it again")
    return about


def pack_of(config: Config, source: Path) -> tuple[ImageSet, dict]:
    """Returns a data folder's pack, which is written first if it is missing, or a pack itself, and its description."""
    path = source if is_pack(source) else _made(config, source)
    tensors, about = _opened(path, "copy it again" if is_pack(source) else REMEDY)
    images = tensors["images"]
    if images.shape[-1] != config.data.size:
        size = images.shape[-1]
        raise UserError(
            f"{path} is of {size}x{size} pictures, but data.size is {config.data.size}; set data.size={size}"
        )
    held_out, objects, places = (tensors[name] for name in LABELS)
    vocabulary, turns = Vocabulary(about["objects"]), tensors.get("turns")
    return ImageSet(images, held_out, objects, places, turns, vocabulary, about["places"]), about


def _made(config: Config, folder: Path) -> Path:
    """Returns the path of a folder's pack, which is written if none has this content."""
    key = fingerprint(folder, config.data.validation_every, config.data.size)
    path, packed = Path(config.root) / "packs" / f"{key}{SUFFIX}", distributed.patient_barrier()
    if not path.is_file() and distributed.is_main():
        with locked(path.parent, wait=True):  # one command packs, the others wait and use its pack
            if not path.is_file() and not _linked(path, config, folder):
                _write(path, config, folder)
                _say_unused(path, folder)
    packed()
    return path


def _linked(path: Path, config: Config, folder: Path) -> bool:
    """Links `path` to a pack of the same content, if there is one: of a folder that was copied, moved or touched."""
    mine, content = outline(folder, config.data.validation_every, config.data.size), ""
    for other, about in _packs(path.parent):
        if about.get("outline") != mine:
            continue
        content = content or content_of(folder, lambda names: progress(names, f"comparing {folder} with its packs"))
        if about["content"] == content:
            try:
                path.unlink(missing_ok=True)  # a link whose pack was deleted
                path.symlink_to(other.name)
            except OSError:  # a file system without links: one more pack
                return False
            say(f"{folder} holds the same as {about['folder']}: using its pack {other}")
            return True
    return False


def _packs(folder: Path) -> list[tuple[Path, dict]]:
    """Lists the whole packs of a folder, without links to them, with their descriptions."""
    found = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            if not path.is_symlink():
                found.append((path, read_about(path, REMEDY)))
        except UserError:  # damaged: whoever uses it is told
            continue
    return found


def _say_unused(path: Path, folder: Path) -> None:
    """Lists other packs that no folder needs any more, with their sizes. Deletes nothing."""
    linked = {link.resolve() for link in path.parent.glob(f"*{SUFFIX}") if link.is_symlink()}
    new = read_about(path, REMEDY)
    for other, about in _packs(path.parent):
        same = all(about.get(key) == new[key] for key in ("folder", "size", "validation_every"))
        gone = "folder" in about and not Path(about["folder"]).exists() and other.resolve() not in linked
        if other != path and (same or gone):
            why = f"an older state of {folder}" if same else f"{about['folder']}, which is gone"
            say(f"{other} ({other.stat().st_size / 1e9:.1f} GB) holds {why}; delete it if nothing else uses it")
    say_unused_latents(path.parent)


def say_unused_latents(packs: Path) -> None:
    """Lists folders of latents whose autoencoder no experiment beside `packs` has any more. Deletes nothing."""
    autoencoders = set()
    for export in packs.parent.glob("*/vae/export.safetensors"):
        with suppress(UserError):  # damaged: whoever uses it is told
            autoencoders.add(read_about(export, REMEDY)["sha256"])
    for folder in sorted(packs.glob(f"{LATENTS}*/")):
        files = sorted(folder.glob(f"*{SUFFIX}"))
        with suppress(UserError, KeyError):
            if files and read_about(files[0], REMEDY)["vae"] not in autoencoders:
                size = sum(file.stat().st_size for file in files) / 1e9
                why = f"latents of an autoencoder that no experiment in {packs.parent} has"
                say(f"{folder} ({size:.1f} GB) holds {why}; delete it if nothing else uses it")


def _write(path: Path, config: Config, folder: Path) -> None:
    images = read_folder(
        folder,
        config.data.validation_every,
        config.data.size,
        lambda names: progress(names, f"packing {folder}"),
        lambda *shape: on_disk(path.parent, *shape),
    )
    write_pack(
        path,
        images,
        folder=str(folder.resolve()),
        outline=outline(folder, config.data.validation_every, config.data.size),
        validation_every=config.data.validation_every,
    )
    say(f"packed {len(images.images)} pictures of {folder} into {path}")
    say(f"{folder}: {images.found()}")


def write_pack(path: Path, images: ImageSet, **more: object) -> None:
    """Writes a pack of pictures, with `more` in its description."""
    labels = {name: getattr(images, name) for name in LABELS}
    if images.turns is not None:
        labels["turns"] = images.turns
    shape = (len(images.images), len(images.vocabulary))
    pictures: dict[str, Tensor | Computed] = {
        "images": images.images,
        "labels": Computed(torch.uint8, shape, images.labels_in_parts),
        "held_out": images.held_out,
    }
    places: dict[str, Tensor | Computed] = {"objects": as_int64(images.objects), "places": images.places}
    about = {
        "objects": images.vocabulary.names,
        "places": images.source,
        "size": images.images.shape[-1],
        "content": images.content,
        "pictures_sha256": sha256_of(pictures),  # of what packs once held: runs are known by it
        "places_sha256": sha256_of(places) if (images.places >= 0).any() else "",
        "turns_sha256": "" if images.turns is None else sha256_of({"turns": images.turns}),
        "labels_sha256": sha256_of(labels),
        **more,
    }
    save_export(path, {"images": images.images, **labels}, about)
    if path.stat().st_size > TRUSTED:
        note_checked(path)


def as_int64(objects: Tensor) -> Computed:
    """Returns a set's objects as int64, the type in which they are hashed."""
    parts = objects.split(CHUNK)
    return Computed(torch.int64, tuple(objects.shape), lambda: (part.long() for part in parts))


def _stamp(path: Path) -> tuple[Path, str]:
    """Returns the file that notes that a pack was checked, and what it then holds."""
    state = path.stat()
    return path.with_name(f".{path.name}.checked"), f"{state.st_size} {state.st_mtime_ns}"


def note_checked(path: Path) -> None:
    """Records that a file's content matches its checksum, until the file changes."""
    stamp, state = _stamp(path)
    try:
        stamp.write_text(state)
    except OSError:  # a read-only folder: it is checked at each start
        return


def was_checked(path: Path) -> bool:
    """Returns True if a file's content was checked and the file did not change since."""
    stamp, state = _stamp(path)
    try:
        return stamp.read_text() == state
    except (OSError, ValueError):
        return False


def _opened(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict]:
    """Opens a pack, mapped. Its checksum reads all of it, but a large one's pictures are read only when it is new."""
    about = read_about(path, remedy)
    path = path.resolve()
    large = path.stat().st_size > TRUSTED and "labels_sha256" in about
    known = large and was_checked(path)
    tensors, about = load_export(path, remedy, mapped=True, check=not known)
    if missing := {"images", *LABELS} - tensors.keys():
        raise UserError(f"{path} is not a pack of pictures: it has no {min(missing)}; {remedy}")
    if fault := _fault_of(tensors, about):
        raise UserError(f"{path} is not a pack of pictures: {fault}; {remedy}")
    if large and not known:
        note_checked(path)
    elif known and sha256_of({k: v for k, v in tensors.items() if k != "images"}) != about["labels_sha256"]:
        raise UserError(f"{path} is damaged (checksum differs): move it aside, then {remedy}")
    return tensors, about


def _fault_of(tensors: dict[str, Tensor], about: dict) -> str | None:
    """Returns what makes a file an invalid pack, or None: it may come from someone else."""
    images, held_out, objects, places = (tensors[name] for name in ("images", *LABELS))
    names, shape, count = about["objects"], tuple(images.shape), len(images)
    if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or not count:
        return f"its pictures are {shape}, {images.dtype}"
    if objects.dtype not in SIGNED or objects.ndim != 2 or objects.shape[1] < 1 or len(objects) != count:
        return f"its objects are {tuple(objects.shape)}, {objects.dtype}"
    if held_out.dtype != torch.bool or held_out.shape != (count,) or places.shape != (*objects.shape, 2):
        return f"held_out and places are {tuple(held_out.shape)}, {held_out.dtype}, and {tuple(places.shape)}"
    if (turns := tensors.get("turns")) is not None:
        if turns.shape != objects.shape or not turns.is_floating_point():
            return f"its turns are {tuple(turns.shape)}, {turns.dtype}"
        if not ((turns == UNKNOWN) | ((turns >= 0) & (turns < 1))).all():
            return "a turn is not in [0, 1)"
    if bool(about.get("turns_sha256")) != (turns is not None):
        return "its turns and their hash do not belong together"
    if not places.is_floating_point() or not all(isinstance(about.get(key), str) for key in DIGESTS):
        return "its places or hashes are of another type"
    if any(part.min() < UNKNOWN or part.max() >= len(names) for part in objects.split(CHUNK)):
        return f"an object is not among its {len(names)}"
    return None


def on_disk(folder: Path, *shape: int) -> Tensor:
    """Returns a uint8 tensor of zeros in an unnamed file of `folder`, deleted with it: it may be larger than memory."""
    size = math.prod(shape)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, but a signal later
            else:
                file.truncate(size)
            return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8).view(shape)
    except OSError as error:
        raise of_the_system(error, f"cannot write {size} bytes into {folder}") from None


@dataclass(frozen=True)
class Packs:
    """The packs of one or several folders as one set, in their order."""

    sets: list[ImageSet]
    abouts: list[dict]

    def part(self, held_out: bool) -> tuple[Rows, Tensor, Tensor, Tensor | None]:
        """Returns pictures, objects, places and turns of the training or the held-out pictures: of one pack, views."""
        found = [images.part(held_out) for images in self.sets]
        if len(found) == 1:
            return found[0]
        kind, slots = index_type(len(self.sets[0].vocabulary)), max(objects.shape[1] for _, objects, *_ in found)
        objects = [F.pad(some.to(kind), (0, slots - some.shape[1]), value=UNKNOWN) for _, some, *_ in found]
        places = [F.pad(some, (0, 0, 0, slots - some.shape[1]), value=float(UNKNOWN)) for _, _, some, _ in found]
        turns = None
        if any(some is not None for *_, some in found):
            each = (unknown_turns(of) if some is None else some for _, of, _, some in found)
            turns = torch.cat([F.pad(some, (0, slots - some.shape[1]), value=float(UNKNOWN)) for some in each])
        return Joined([pictures for pictures, *_ in found]), torch.cat(objects), torch.cat(places), turns

    def digest(self, key: str) -> str:
        """Returns what identifies the set: one pack's own `key`, or a hash of several; "" if all are ""."""
        found = [about.get(key, "") for about in self.abouts]  # an older pack has no hash of turns
        if len(found) == 1 or not any(found):
            return found[0]
        return hashlib.sha256(" ".join(found).encode()).hexdigest()


def load_packs(config: Config, sources: Sequence[Path]) -> Packs:
    """Opens the packs of folders, which are packed one after the other on first use. Raises UserError."""
    try:
        sets, abouts = zip(*(pack_of(config, source) for source in sources), strict=True)
    except DataError as error:
        raise UserError(str(error)) from None
    return Packs([*sets], [*abouts])
