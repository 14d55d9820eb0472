"""Loads an experiment's pictures, packed once into one file and held on the device."""

import json
import math
import mmap
import os
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from data.images import ImageSet, fingerprint, read_folder, read_test_sets, to_unit
from data.joined import Joined, Rows
from data.labels import DataError, Vocabulary, read_vocabulary, withheld
from models.condition import Condition
from models.layouts import evenly
from stages.engine import distributed
from stages.engine.config import Config
from stages.engine.errors import UserError, of_the_system
from stages.engine.export import Computed, load_export, save_export, sha256_of
from stages.engine.lock import locked
from stages.engine.log import progress, say

CHUNK = 2**20  # pictures whose labels are worked on at once
PREVIEWED = 4096  # held-out pictures that a preview measures at most; what is exported is measured on all


@dataclass(frozen=True)
class Dataset:
    """Training and held-out pictures, (n, 3, s, s) uint8, and what they show.

    All are on the device, except pictures that are too many for it: they stay in the pack, mapped from the disk. On a
    CPU they always do, and so do objects and places: the system keeps in memory as much as it can. Labels are kept as
    indices of objects; those of a batch become multi-hot.

    `sha256` covers pictures, label sets and split; `places_sha256` covers the objects' order and places ("" if no place
    is known). A network that is trained on label sets alone therefore stays valid when places are found.
    """

    images: Rows
    conditions: Condition
    held_out_images: Rows
    held_out_conditions: Condition
    test_sets: dict[str, Condition]
    vocabulary: Vocabulary
    sha256: str
    places_sha256: str
    folder: Path

    @property
    def size(self) -> int:
        """The pictures' side s in pixels."""
        return self.images.shape[-1]

    def labels(self, index: Tensor) -> Tensor:
        """Returns training pictures' labels, multi-hot (b, k) float."""
        return self.conditions[index].labels

    @cached_property
    def held_out_labels(self) -> Tensor:
        """The held-out pictures' labels, multi-hot (n, k) float."""
        return self.held_out_conditions.labels

    def held_out(self, most: int | None = None) -> tuple[Rows, Tensor]:
        """Returns held-out pictures (n, 3, s, s) uint8 where they are, and labels; at most `most`, evenly chosen."""
        images, conditions = self.held_out_images, self.held_out_conditions
        if most is None or len(images) <= most:
            return images, self.held_out_labels
        rows = evenly(len(images), most)
        return images[rows.to(images.device)], conditions[rows.to(conditions.device)].labels

    @cached_property
    def most_objects(self) -> int:
        """The largest number of objects in a training picture: training teaches that many slots of an order."""
        return int(self.conditions.present.any(0).sum())  # lists are filled from the first slot on

    @property
    def layouts(self) -> dict[str, str]:
        """Parent hashes of networks that read the objects' order or places. Without places, the order adds one."""
        order = {} if self.places_sha256 else {"order": sha256_of({"objects": as_int64(self.conditions.objects)})}
        return {"places": self.places_sha256, **order}

    def must_know_places(self, needs: dict[str, str]) -> None:
        """Raises UserError if no place is known and `needs`, as from `Config.places_of`, names a key that needs one."""
        if not self.places_sha256:
            _refuse_needed_places(needs, self.folder)

    def pictures(self, index: Tensor) -> Tensor:
        """Returns training pictures (b, 3, s, s) in [-1, 1] on the device."""
        return to_unit(self.images[index.to(self.images.device)].to(self.conditions.device))


class Drawn:
    """An epoch's pictures: each once, or with `by-labels` once per label. It maps numbers of draws to pictures.

    Accuracy counts labels: with `by-labels` a picture of three objects counts as much as three pictures of one.
    """

    def __init__(self, conditions: Condition, how: str):
        self._size = len(conditions)
        self._ends: Tensor | None = None
        if how == "by-labels":
            kind = torch.int32 if conditions.objects.numel() < 2**31 else torch.int64
            counts = [objects.ge(0).sum(1, dtype=kind) for objects in conditions.objects.split(CHUNK)]
            self._ends = torch.cat(counts).cumsum_(0)
            self._size = int(self._ends[-1])

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, draws: Tensor) -> Tensor:
        """Returns the pictures (b,) of draws (b,) from {0, ..., len(self) - 1}."""
        if self._ends is None:
            return draws
        return torch.searchsorted(self._ends, draws.to(self._ends.dtype), right=True)


def as_int64(objects: Tensor) -> Computed:
    """Returns a set's objects in the type in which they have always been hashed."""
    parts = objects.split(CHUNK)
    return Computed(torch.int64, tuple(objects.shape), lambda: (part.long() for part in parts))


def data_folder(config: Config) -> Path:
    """Returns the folder of the pictures: the configured one, or what `stages.render` drew for this experiment."""
    return Path(config.data.folder) if config.data.folder else Path(config.root) / config.name / "render"


def _pack(config: Config, folder: Path) -> tuple[ImageSet, dict]:
    """Returns the folder's pack, which is written first if it is missing, and the pack's description."""
    key = fingerprint(folder, config.data.validation_every, config.data.size)
    path = Path(config.root) / "packs" / f"{key}.safetensors"
    remedy, packed = "run the same command again", distributed.patient_barrier()
    if not path.is_file() and distributed.is_main():
        with locked(path.parent, wait=True):  # one command packs, the others wait and use its pack
            if not path.is_file():
                _write_pack(path, config, folder)
    packed()
    tensors, about = load_export(path, remedy, mapped=True)
    return ImageSet(**tensors, vocabulary=Vocabulary(about["objects"]), source=about["places"]), about


def _write_pack(path: Path, config: Config, folder: Path) -> None:
    for stale in path.parent.glob(".*.tmp"):  # left by a killed command: this one holds the lock
        stale.unlink()
    images = read_folder(
        folder,
        config.data.validation_every,
        config.data.size,
        lambda names: progress(names, f"packing {folder}"),
        lambda *shape: on_disk(path.parent, *shape),
    )
    stored = {name: getattr(images, name) for name in ("images", "held_out", "objects", "places")}
    shape = (len(images.images), len(images.vocabulary))
    multi_hot = Computed(torch.uint8, shape, images.labels_in_parts)
    pictures: dict[str, Tensor | Computed] = {
        "images": images.images,
        "labels": multi_hot,
        "held_out": images.held_out,
    }
    places: dict[str, Tensor | Computed] = {"objects": as_int64(images.objects), "places": images.places}
    about = {
        "objects": images.vocabulary.names,
        "folder": str(folder),
        "places": images.source,
        "pictures_sha256": sha256_of(pictures),  # of what packs once held: runs are known by it
        "places_sha256": sha256_of(places) if (images.places >= 0).any() else "",
    }
    save_export(path, stored, about)
    say(f"packed {len(images.images)} pictures of {folder} into {path}")
    say(f"{folder}: {images.found()}")


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


def placed(images: Rows, device: torch.device) -> Rows:
    """Moves the pictures to the device if they take at most half of its free memory, else leaves them in place."""
    if images.device == device or (device.type == "cuda" and images.nbytes > torch.cuda.mem_get_info(device)[0] / 2):
        return images
    return images.to(device)


def _refuse_needed_places(needs: dict[str, str], folder: Path) -> None:
    """Raises UserError if `needs` is not empty: {key that needs places: override that does without them}."""
    if needs:
        raise UserError(
            f"{folder}: no object's place is known, but {', '.join(needs)} cannot work without; add a places.json "
            f"(README, 'Your own data'), or do without: {' '.join(needs.values())}"
        )


def _refuse_smaller_scenes(folder: Path, size: int) -> None:
    """Raises UserError if `stages.render` drew this folder's scenes smaller than data.size: packing would enlarge them.

    Pictures from elsewhere are scaled in either direction.
    """
    try:
        drawn = json.loads((folder / "render.json").read_text())["size"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if isinstance(drawn, int) and drawn < size:
        raise UserError(
            f"{folder}: its scenes were drawn at {drawn}x{drawn}, below data.size={size}; draw others with "
            f"`python -m stages.render` under another `name`, or set data.size={drawn}"
        )


def load_dataset(config: Config, device: torch.device) -> Dataset:
    """Loads the experiment's pictures, which are packed on first use. Raises UserError that names a folder's fault."""
    folder = data_folder(config)
    if config.data.folder is None and not (folder / "train.json").exists():
        raise UserError(
            f"{folder} has no scenes yet: run `python -m stages.render`, or set data.folder (Make: DATA=...)"
        )
    if not folder.is_dir():
        raise UserError(f"{folder}: no such data folder; set data.folder to the folder that holds train.json")
    _refuse_smaller_scenes(folder, config.data.size)
    try:
        vocabulary = read_vocabulary(folder / "objects.json")
        test_sets = read_test_sets(folder, vocabulary, config.data.conditions)  # its faults before slow packing
        images, about = _pack(config, folder)
    except DataError as error:
        raise UserError(str(error)) from None
    if not about["places_sha256"]:
        _refuse_needed_places(config.needs_places, folder)
    classes, digest = len(images.vocabulary), about["pictures_sha256"]

    def part(held_out: bool) -> tuple[Tensor, Condition]:
        pictures, objects, places = images.part(held_out)
        return pictures, Condition(objects, places, classes)

    pictures: Rows
    pictures, conditions = part(held_out=False)
    if config.data.withhold:
        seen = ~withheld(conditions.objects, config.data.withhold)
        (rows,) = seen.nonzero(as_tuple=True)
        pictures, digest = Joined([pictures], rows.int()), f"{digest} withhold {config.data.withhold}"
        conditions = Condition(conditions.objects[rows], conditions.places[rows], classes)
        if not len(pictures):
            raise UserError(
                f"data.withhold={config.data.withhold:g} leaves no picture of {folder} to train on; lower it"
            )
    held_out_pictures, held_out_conditions = part(held_out=True)
    return Dataset(
        placed(pictures, device),
        conditions.to(device),
        placed(held_out_pictures, device),
        held_out_conditions.to(device),
        {name: Condition.of_lists(sets, classes) for name, sets in test_sets.items()},
        images.vocabulary,
        digest,
        about["places_sha256"],
        folder,
    )
