"""Reads a folder in the lab's layout into one uint8 array of square pictures with labels and places.

    images/ or iclevr/, or that name's .zip   the pictures, of any size, also in sub-folders
    train.json              {path of the picture: [object, ...]}
    validation.json         the same, held out of training (optional)
    objects.json            {object: index}
    places.json             {path of the picture: [[x, y] or null, ...]}, in the order of its objects (optional)
    turns.json              {path of the picture: [turn or null, ...]}, parts of a full turn (optional)
    test.json, new_test.json   [[object, ...], ...]; the configuration may list others

Everything is checked here, once; `ImageSet` is what the rest of the project sees.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from data.files import LARGEST_SIDE, SUFFIXES, PictureFiles
from data.labels import DataError, Place, Vocabulary, read_conditions, read_picture_labels, read_vocabulary
from data.places import read_places, read_turns, recovered
from data.sizes import SIZE

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # by content, not by name: decoders of other formats may run programs
VERSION = 5  # raised when packs of the same files would differ: 5 keeps labels as indices
UNKNOWN = -1  # fills `objects` after a picture's last object, and unknown places


@dataclass(frozen=True)
class ImageSet:
    """Pictures, their objects and their places; the held-out (validation) pictures come last.

    `images` (n, 3, s, s) uint8; `held_out` (n,) bool; `objects` (n, m), indices in the order of the picture's list,
    then -1, in the smallest type that holds the vocabulary (`index_type`); `places` (n, m, 2) float32, x to the right
    and y downwards in [0, 1] of the picture, -1 where unknown; `turns` (n, m) float32, in [0, 1) of a full turn, -1
    where unknown, None if none is known. `source`: where the places are from, in words. `content`: a key of the files
    that were read.
    """

    images: Tensor
    held_out: Tensor
    objects: Tensor
    places: Tensor
    turns: Tensor | None
    vocabulary: Vocabulary
    source: str
    content: str = ""

    def part(self, held_out: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Returns views of the images, objects, places and turns of the training or the held-out pictures."""
        trained = len(self.held_out) - int(self.held_out.sum())
        rows = slice(trained, None) if held_out else slice(trained)
        turns = None if self.turns is None else self.turns[rows]
        return self.images[rows], self.objects[rows], self.places[rows], turns

    @property
    def labels(self) -> Tensor:
        """The labels, multi-hot (n, k) uint8."""
        return torch.cat([*self.labels_in_parts()])

    def labels_in_parts(self, size: int = 2**16) -> Iterator[Tensor]:
        """Yields the labels, multi-hot uint8, of `size` pictures at a time: together they may not fit into memory."""
        for objects in self.objects.split(size):
            slots = objects.long() % (len(self.vocabulary) + 1)  # -1 becomes a last column, which is cut off
            found = torch.zeros(len(objects), len(self.vocabulary) + 1, dtype=torch.uint8)
            yield found.scatter_(1, slots, 1)[:, :-1].contiguous()

    def found(self) -> str:
        """Returns how many places are known and their source, in words."""
        objects, known = int((self.objects >= 0).sum()), int((self.places[..., 0] >= 0).sum())
        return f"places of {known:,} of {objects:,} objects, {self.source}" if known else "no object has a known place"


def to_unit(images: Tensor) -> Tensor:
    """Converts uint8 0..255 to float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1.0)


def _png_depth(content: bytes) -> int:
    """Returns a PNG's bits per channel, 8 for other formats. Pillow silently cuts a colour PNG from 16 to 8 bits."""
    return content[24] if content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) > 24 else 8


def _kind(content: bytes) -> str | None:
    """Returns the kind of a file that is not in FORMATS, in words, or None if unknown."""
    start = content[:512].lstrip()
    if not start:
        return "an empty file; restore it"
    if content.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the picture; run `git lfs pull`"
    if start[:1] == b"<":
        return "an HTML or XML page; download the picture itself"
    other = {b"GIF8": "a GIF", b"II*\0": "a TIFF", b"MM\0*": "a TIFF", b"%PDF": "a PDF"}
    name = next((words for mark, words in other.items() if content.startswith(mark)), None)
    if content[4:8] == b"ftyp":
        name = "a HEIC or AVIF picture"
    return name and f"{name}; save it as {', '.join(FORMATS)}"


def decode(content: bytes, where: str, size: int = SIZE) -> np.ndarray:
    """Decodes a picture file's bytes to (3, size, size) uint8, resized to a square with antialiasing.

    Grey and palette pictures are converted; 16-bit, transparent and animated ones are refused, as converting them
    would be a guess. Raises DataError.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            picture: Image.Image = opened
            if max(picture.size) > LARGEST_SIDE:
                raise DataError(
                    f"{where}: too many pixels ({picture.width}x{picture.height}); shrink it to {LARGEST_SIDE} a side"
                )
            if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":  # of a phone's MPO the first is taken
                raise DataError(f"{where}: an animated picture; save a single frame")
            if picture.mode.startswith(("I", "F")) or _png_depth(content) > 8:
                raise DataError(f"{where}: a picture with 16 or 32 bits per channel; save it with 8")
            if "A" in picture.getbands() or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                if np.asarray(picture.getchannel("A")).min() < 255:
                    raise DataError(f"{where}: a transparent picture; save it on a background")
            picture = ImageOps.exif_transpose(picture).convert("RGB")
            if picture.size != (size, size):
                picture = picture.resize((size, size), Image.Resampling.BILINEAR)  # Pillow's resize antialiases
            return np.asarray(picture).transpose(2, 0, 1)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise many kinds of exception on damaged files
        if kind := _kind(content):
            raise DataError(f"{where}: not a readable picture but {kind}") from None
        why = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error)[:80]
        raise DataError(f"{where}: not a readable picture ({why}); restore it") from None


def _scene(name: str) -> str:
    """CLEVR_train_002066_1.png -> CLEVR_train_002066: returns the scene, whose pictures share their first objects."""
    whole = PurePosixPath(name).with_suffix("")
    stem, _, last = whole.name.rpartition("_")
    return str(whole.with_name(stem)) if stem and last.isdigit() else str(whole)


def _hold_out(names: list[str], every: int) -> Tensor:
    """Marks every `every`-th scene in name order, so that no scene is on both sides of the split.

    Names without scenes (photo_0001, photo_0002, ...) look like one or few scenes: then each picture counts as one.
    """
    groups = list(map(_scene, names))
    if len(set(groups)) < every:
        groups = names
    order = {group: i for i, group in enumerate(sorted(set(groups)))}
    return torch.tensor([order[group] % every == every - 1 for group in groups])


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8)


def index_type(classes: int) -> torch.dtype:
    """Returns the smallest integer type that holds -1 and the indices below `classes`."""
    return next(kind for kind in (torch.int8, torch.int16, torch.int32) if classes - 1 <= torch.iinfo(kind).max)


def _as_tensors(lists: list[list[int]], places: list[list[Place | None]], classes: int) -> tuple[Tensor, Tensor]:
    """Converts lists of indices and places, one per picture, to `objects` and `places` of an ImageSet."""
    objects = torch.full((len(lists), max(map(len, lists))), UNKNOWN, dtype=index_type(classes))
    where = torch.full((*objects.shape, 2), float(UNKNOWN))
    slots = torch.arange(objects.shape[1]) < torch.tensor([len(row) for row in lists])[:, None]
    objects[slots] = torch.tensor([index for row in lists for index in row], dtype=objects.dtype)
    return objects, _filled(where, places)


def _filled(unknown: Tensor, values: Sequence[Sequence[object]]) -> Tensor:
    """Writes the values that are not None, one list per picture, into a tensor (n, m, ...), and returns it."""
    known = [(i, j, value) for i, row in enumerate(values) for j, value in enumerate(row) if value is not None]
    if known:
        rows, columns, found = zip(*known, strict=True)
        unknown[list(rows), list(columns)] = torch.tensor(found)
    return unknown


def _turns(known: list[list[float | None]], objects: Tensor) -> Tensor | None:
    """Converts the known turns, one list per picture, to `turns` of an ImageSet with these objects (n, m)."""
    turns = _filled(torch.full(objects.shape, float(UNKNOWN)), known)
    return turns if (turns >= 0).any() else None


def _both(folder: Path, vocabulary: Vocabulary) -> tuple[dict[str, list[int]], set[str] | None]:
    """Returns all pictures' objects, and the pictures that validation.json holds out (None without that file)."""
    listed = read_picture_labels(folder / "train.json", vocabulary)
    if not os.path.lexists(folder / "validation.json"):  # also true for a broken link, which read_json reports
        return listed, None
    more = read_picture_labels(folder / "validation.json", vocabulary)
    if shared := set(listed) & set(more):
        raise DataError(f"{folder / 'validation.json'}: {min(shared)} is also in train.json; remove it from one")
    return listed | more, set(more)


def read_folder(
    folder: Path,
    validation_every: int,
    size: int = SIZE,
    progress: Callable[[list[str]], Iterable[str]] = iter,
    empty: Callable[..., Tensor] = _empty,
) -> ImageSet:
    """Reads, checks and decodes a whole folder. `progress` wraps the iterator over pictures.

    Without a validation.json every `validation_every`-th scene is held out. `empty(n, 3, size, size)` makes
    the uint8 array to fill. Raises DataError.
    """
    vocabulary = read_vocabulary(folder / "objects.json")
    listed, apart = _both(folder, vocabulary)
    known = read_places(folder / "places.json", listed)
    turned = read_turns(folder / "turns.json", listed) or {}
    pictures = PictureFiles(folder)
    missing = [name for name in listed if name not in pictures.names]
    if strange := [name for name in missing if PurePosixPath(name).suffix.lower() not in SUFFIXES]:
        kinds = ", ".join(SUFFIXES)
        where = folder / ("validation.json" if apart and strange[0] in apart else "train.json")
        raise DataError(f"{where}: {strange[0]} is not a picture file that is read here ({kinds})")
    if missing:
        raise DataError(f"{pictures.where}: {missing[0]} is missing but has labels ({len(missing)} in all); restore it")
    unlabelled = set(pictures.names) - set(listed)
    if unlabelled:
        where, first = folder / "train.json", min(unlabelled)
        raise DataError(f"{where}: picture {first} has no labels ({len(unlabelled)} in all); add them or remove it")
    names = list(listed)
    held_out = _hold_out(names, validation_every) if apart is None else torch.tensor([n in apart for n in names])
    if held_out.all() or not held_out.any():
        fix = "change data.validation_every or add a validation.json"
        raise DataError(f"{folder}: no pictures are left for training, or none are held out; {fix}")
    order = held_out.int().argsort(stable=True)
    names, held_out = [names[i] for i in order.tolist()], held_out[order]
    images = empty(len(names), 3, size, size)
    for i, name in enumerate(progress(names)):
        images[i] = torch.from_numpy(decode(pictures.read(name), f"{pictures.where}/{name}", size).copy())
    lists = [listed[name] for name in names]
    objects, places = _as_tensors(lists, [(known or {}).get(name, []) for name in names], len(vocabulary))
    source = "from places.json"
    if known is None:
        places, source = recovered(images, objects, list(map(_scene, names))), "from the differences between pictures"
    turns = _turns([turned.get(name, []) for name in names], objects) if turned else None
    return ImageSet(images, held_out, objects, places, turns, vocabulary, source, pictures.content())


def read_test_sets(folder: Path, vocabulary: Vocabulary, names: Iterable[str]) -> dict[str, list[list[int]]]:
    """Reads the label sets of `names`' .json files as indices, in the order of each set."""
    return {name: read_conditions(folder / f"{name}.json", vocabulary) for name in names}
