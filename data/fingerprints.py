"""Keys of a data folder: quick ones by what the system knows of its files, and one by their whole content."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from data.files import PictureFiles
from data.images import VERSION
from data.labels import DataError, read_json
from data.sizes import SIZE

LABEL_FILES = ("objects.json", "train.json", "validation.json", "places.json", "turns.json")


def fingerprint(folder: Path, validation_every: int, size: int = SIZE) -> str:
    """Returns a quick key for what `read_folder` would return now, without reading any picture.

    It changes with a folder's path and its files' times; a zip's does not. Raises DataError for an incomplete folder.
    """
    return _key(folder, validation_every, size, lambda pictures: pictures.stamps(), Path.read_bytes)


def outline(folder: Path, validation_every: int, size: int = SIZE) -> str:
    """Returns a quick key without path and times: folders of the same content agree, and few others do.

    The order of the pictures in a file of labels does not count.
    """
    return _key(folder, validation_every, size, lambda pictures: pictures.sizes(), _ordered)


def content_of(folder: Path, progress: Callable[[list[str]], Iterable[str]] = iter) -> str:
    """Returns a key of all pictures' names and content, `ImageSet.content` of the same folder. It reads all files."""
    pictures = PictureFiles(folder)
    for name in progress(sorted(pictures.names)):
        pictures.read(name)
    return pictures.content()


def _ordered(path: Path) -> bytes:
    """Returns a JSON file's content with its keys in order. Raises DataError."""
    return json.dumps(read_json(path), sort_keys=True).encode()


def _key(
    folder: Path,
    validation_every: int,
    size: int,
    stamps: Callable[[PictureFiles], Iterator[str]],
    labels: Callable[[Path], bytes],
) -> str:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such data folder; give the folder that holds train.json")
    digest = hashlib.sha256(f"{VERSION} {validation_every} {size}\n".encode())
    for stamp in stamps(PictureFiles(folder)):
        digest.update(stamp.encode(errors="surrogateescape") + b"\n")
    for name in LABEL_FILES:
        if (folder / name).is_file():
            digest.update(labels(folder / name))
    return digest.hexdigest()[:16]
