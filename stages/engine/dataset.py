"""Loads an experiment's pictures, packed once into one file and held on the device."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from data.images import read_test_sets, to_unit
from data.joined import Joined, Rows
from data.labels import DataError, Vocabulary, withheld
from models.choices import DIFFUSION
from models.condition import Condition, unknown_turns
from models.layouts import evenly, smallest_gaps
from stages.engine.ahead import Batches
from stages.engine.config import Config
from stages.engine.drawn import CHUNK, Drawn
from stages.engine.draws import Coming
from stages.engine.errors import UserError
from stages.engine.export import sha256_of
from stages.engine.files import from_json
from stages.engine.packs import as_int64, is_pack, load_packs, vocabulary_of

PREVIEWED = 4096  # held-out pictures that a preview measures at most; what is exported is measured on all


@dataclass(frozen=True)
class Dataset:
    """Training and held-out pictures, (n, 3, s, s) uint8, and what they show.

    All are on the device, except pictures that are too many for it: they stay in the pack, mapped from the disk. On a
    CPU they always do, and so do objects and places: the system keeps in memory as much as it can. Labels are kept as
    indices of objects; those of a batch become multi-hot.

    `sha256` covers pictures, label sets and split; `places_sha256` covers the objects' order and places ("" if no place
    is known), `turns_sha256` how they are turned ("" if that is not known). A network that is trained on label sets
    alone therefore stays valid when places are found. `scenes` covers the settings that pictures were drawn by
    here, and their objects and places: unlike `sha256` it does not depend on the processor, which changes pictures'
    last bits ("" for other pictures, and for several folders).
    """

    images: Rows
    conditions: Condition
    held_out_images: Rows
    held_out_conditions: Condition
    test_sets: dict[str, Condition]
    vocabulary: Vocabulary
    sha256: str
    places_sha256: str
    turns_sha256: str
    scenes: str
    folder: str | Path  # where the pictures are from, in words

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
        return max(int((part >= 0).any(0).sum()) for part in self.conditions.objects.split(CHUNK))  # no list has gaps

    @property
    def parents(self) -> dict[str, str]:
        """Parent hashes of everything that learns from the pictures."""
        return {"data": self.sha256, **({"scenes": self.scenes} if self.scenes else {})}

    def layouts(self, turns: bool = False) -> dict[str, str]:
        """Returns parent hashes of networks that read the objects' order or places, or how they turn (`turns`).

        Without places, the order adds one.
        """
        order = {} if self.places_sha256 else {"order": sha256_of({"objects": as_int64(self.conditions.objects)})}
        return {"places": self.places_sha256, **order, **({"turns": self.turns_sha256} if turns else {})}

    def must_know(self, config: Config, model: str) -> None:
        """Raises UserError if a model's settings need places or turns and none is known. `models` may not list it."""
        self.refuse_unknown(config.places_of(model), config.turns_of(model))

    def refuse_unknown(self, places: dict[str, str], turns: dict[str, str]) -> None:
        """Raises UserError if places or turns are needed and none is known.

        `places`, `turns`: {key that needs them: override that does without them}.
        """
        if places and not self.places_sha256:
            raise UserError(
                f"{self.folder}: no object's place is known, but {', '.join(places)} must know them; add a places.json "
                f"(README, 'Your own data'), or set {' '.join(places.values())}"
            )
        if turns and not self.turns_sha256:
            fix = "run `python -m stages.render`, which adds" if self.scenes else "add"  # older scenes have none
            raise UserError(
                f"{self.folder}: it is not known how any object is turned, but {', '.join(turns)} must know it; {fix} "
                f"a turns.json (docs/conditions.md), or set {' '.join(turns.values())}"
            )

    def apart(self, distance: float, key: str) -> Tensor | None:
        """Returns the training pictures (k,) whose objects are at least `distance` (sides of the picture) apart.

        Pictures of one object are among them, those of several with an unknown place are not. None means all, for
        distance 0. Raises UserError, which names the `key` that says the distance, if that leaves none of the pictures
        with some number of objects.
        """
        if distance == 0:
            return None
        rows, before, left = list[Tensor](), set[int](), set[int]()
        for first in range(0, len(self.conditions), CHUNK):
            part = self.conditions[first : first + CHUNK]
            kept, numbers = smallest_gaps(part) >= distance, part.present.sum(1)
            rows.append(kept.nonzero()[:, 0].int() + first)
            before |= {*numbers.unique().tolist()}
            left |= {*numbers[kept].unique().tolist()}
        if before > left:
            raise UserError(
                f"{key}={distance:g}: {self.folder} has no picture of {min(before - left)} objects whose places are "
                f"known and so far apart; set a smaller distance"
            )
        return torch.cat(rows)

    @cached_property
    def _batches(self) -> Batches:
        return Batches(self.images, self.conditions.device)

    @cached_property
    def once(self) -> Drawn:
        """Each training picture once an epoch."""
        return Drawn(self.conditions, "uniform")

    def pictures(self, index: Tensor, coming: Coming | None = None) -> Tensor:
        """Returns training pictures (b, 3, s, s) in [-1, 1] on the device. `coming`: what the index was drawn by."""
        return to_unit(self._batches(index, coming))


def sources_of(config: Config) -> list[Path]:
    """Returns the folders or packs of the pictures: those configured, or what `stages.render` drew."""
    return list(map(Path, config.data.folders)) or [Path(config.root) / config.name / "render"]


def placed(images: Rows, device: torch.device) -> Rows:
    """Moves the pictures to the device if they take at most half of its free memory, else leaves them in place."""
    if images.device == device or (device.type == "cuda" and images.nbytes > torch.cuda.mem_get_info(device)[0] / 2):
        return images
    return images.to(device)


def _drawn_by(folder: Path) -> dict:
    """Returns the settings by which `stages.render` drew a folder's scenes, none for pictures from elsewhere."""
    try:
        settings = from_json((folder / "render.json").read_text())
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _scenes_of(sources: Sequence[Path], places_digest: str) -> str:
    """Returns a hash of what one folder's scenes follow from if `stages.render` drew them, else ""."""
    settings = _drawn_by(sources[0]) if len(sources) == 1 else {}
    if not settings or not places_digest:
        return ""
    return hashlib.sha256(json.dumps([settings, places_digest], sort_keys=True).encode()).hexdigest()


def _refuse_smaller_scenes(folder: Path, size: int) -> None:
    """Raises UserError if `stages.render` drew this folder's scenes smaller than data.size: packing would enlarge them.

    Pictures from elsewhere are scaled in either direction.
    """
    drawn = _drawn_by(folder).get("size")
    if isinstance(drawn, int) and drawn < size:
        raise UserError(
            f"{folder}: its scenes were drawn at {drawn}x{drawn}, below data.size={size}; draw others with "
            f"`python -m stages.render` under another `name`, or set data.size={drawn}"
        )


def _refuse_missing(config: Config, sources: Sequence[Path]) -> None:
    """Raises UserError if a source of pictures is not there, or is of smaller pictures than data.size."""
    if not config.data.folders and not (sources[0] / "train.json").exists():
        raise UserError(
            f"{sources[0]} has no scenes yet: run `python -m stages.render`, or set data.folder (Make: DATA=...)"
        )
    for source in sources:
        if not is_pack(source) and not source.is_dir():
            raise UserError(f"{source}: no such data folder; set data.folder to the folder that holds train.json")
        _refuse_smaller_scenes(source, config.data.size)


def _test_sets(config: Config, sources: Sequence[Path], vocabulary: Vocabulary) -> dict[str, list[list[int]]]:
    """Reads each file of label sets from the first of the folders that has it; of a pack, from the folder it is in."""
    folders = [source.parent if is_pack(source) else source for source in sources]

    def folder_of(name: str) -> Path:
        return next((folder for folder in folders if os.path.lexists(folder / f"{name}.json")), folders[0])

    found: dict[str, list[list[int]]] = {}
    for name in config.data.conditions:
        found |= read_test_sets(folder_of(name), vocabulary, [name])
    return found


def _seen(pictures: Rows, conditions: Condition, share: float, where: str) -> tuple[Rows, Condition]:
    """Returns the pictures, and what they show, without those of a `share` of the label sets. Raises UserError."""
    (rows,) = (~withheld(conditions.objects, share)).nonzero(as_tuple=True)
    if not len(rows):
        raise UserError(f"data.withhold={share:g} leaves no picture of {where} to train on; lower it")
    parts = pictures.parts if isinstance(pictures, Joined) else [pictures]
    return Joined(parts, rows.int()), conditions.moved(lambda values: values[rows])


def load_dataset(config: Config, device: torch.device) -> Dataset:
    """Loads the experiment's pictures, which are packed on first use.

    Raises UserError that names a folder's fault, or a setting that leaves no pictures to train on.
    """
    sources = sources_of(config)
    _refuse_missing(config, sources)
    where = f"{sources[0]} and {len(sources) - 1} more" if len(sources) > 1 else str(sources[0])
    try:
        vocabulary = vocabulary_of(sources)
        test_sets = _test_sets(config, sources, vocabulary)  # its faults before slow packing
        packs = load_packs(config, sources)
    except DataError as error:
        raise UserError(str(error)) from None
    classes, digest, places_digest = len(vocabulary), packs.digest("pictures_sha256"), packs.digest("places_sha256")
    turns_digest, scenes = packs.digest("turns_sha256"), _scenes_of(sources, places_digest)

    def part(held_out: bool) -> tuple[Rows, Condition]:
        pictures, objects, places, turns = packs.part(held_out)
        return pictures, Condition(objects, places, unknown_turns(objects) if turns is None else turns, classes)

    def on_device(found: Condition) -> Condition:
        moved = found.to(device)  # unknown turns take memory once they are moved
        return moved if turns_digest else moved.without_turns()

    pictures, conditions = part(held_out=False)
    if config.data.withhold:
        pictures, conditions = _seen(pictures, conditions, config.data.withhold, where)
        without = f" withhold {config.data.withhold}"
        digest, scenes = digest + without, scenes and scenes + without
    held_out_pictures, held_out_conditions = part(held_out=True)
    dataset = Dataset(
        placed(pictures, device),
        on_device(conditions),
        placed(held_out_pictures, device),
        on_device(held_out_conditions),
        {name: Condition.of_lists(sets, classes) for name, sets in test_sets.items()},
        vocabulary,
        digest,
        places_digest,
        turns_digest,
        scenes,
        where,
    )
    dataset.refuse_unknown(config.needs_places, config.needs_turns)
    trained = {"ldm" if model == "onestep" else model for model in config.models} - config.uses.keys()
    for model in trained & {*DIFFUSION}:  # refused before anything is trained
        dataset.apart(getattr(config, model).apart, f"{model}.apart")
    return dataset
