"""Finds and reads the picture files of a data folder or a zip, and returns what shows that they have changed."""

import hashlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data.labels import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
PICTURE_FOLDERS = ("images", "iclevr")  # what the folder of the pictures may be called
LARGEST_SIDE = 8192  # pixels; a larger picture is refused before it is decoded


def _place_of_pictures(folder: Path) -> Path:
    """Returns images/ or iclevr/ of a data folder, or that name's .zip. Raises DataError if none or both are there."""
    found = [[p for p in (folder / name, folder / f"{name}.zip") if p.exists()][:1] for name in PICTURE_FOLDERS]
    one = [path for paths in found for path in paths]
    if len(one) > 1:
        raise DataError(f"{folder} holds both {one[0].name} and {one[1].name}; remove one of them")
    if not one:
        either = " or ".join(f"{name}/" for name in PICTURE_FOLDERS)
        raise DataError(f"{folder}: neither {either} nor a .zip of these names exists; put the pictures into one")
    return one[0]


class PictureFiles:
    """The picture files of a folder or a zip, by their path in it: sub-folders are allowed, with / between."""

    def __init__(self, folder: Path):
        self.where = _place_of_pictures(folder)
        self._archive: zipfile.ZipFile | None = None
        self._files: dict[str, Path] = {}
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._digests: dict[str, bytes] = {}
        if self.where.is_dir():
            self._files = dict(self._found())
        else:
            self._archive = self._opened()
            self._members = self._checked(self._archive)
        self.names = self._files.keys() | self._members.keys()
        if not self.names:
            raise DataError(f"{self.where}: no pictures ({', '.join(SUFFIXES)}); add some")

    def _found(self) -> Iterator[tuple[str, Path]]:
        """Yields the picture files in the folder and its sub-folders, each with its name."""

        def refuse(error: OSError) -> None:
            raise error

        for folder, inner, files in os.walk(self.where, onerror=refuse):
            inner[:] = [name for name in inner if not name.startswith((".", "__MACOSX"))]
            for path in map(Path(folder).joinpath, files):
                if path.suffix.lower() in SUFFIXES:
                    yield path.relative_to(self.where).as_posix(), path

    def _opened(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.where)
        except Exception as error:  # a damaged zip directory raises many kinds of exception
            raise DataError(f"{self.where}: not a readable zip ({error}); restore the file") from None

    def _checked(self, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
        """Returns the pictures in the archive by name."""
        members: list[zipfile.ZipInfo] = []
        paths: list[PurePosixPath] = []
        for member in archive.infolist():
            path = PurePosixPath(member.filename.replace("\\", "/"))
            if path.suffix.lower() not in SUFFIXES or path.parts[0] == "__MACOSX":
                continue
            if path.is_absolute() or ".." in path.parts:
                raise DataError(f"{self.where}: member {member.filename!r} points outside; remove it")
            if member.file_size > 3 * LARGEST_SIDE**2:
                raise DataError(
                    f"{self.where}: member {member.filename!r} unpacks to {member.file_size} bytes, too many; remove it"
                )
            paths.append(path)
            members.append(member)
        named: dict[str, zipfile.ZipInfo] = {}
        for name, member in zip(_within(paths, self.where.stem), members, strict=True):
            if name in named:
                raise DataError(f"{self.where}: two members are called {name}; rename one")
            named[name] = member
        return named

    def read(self, name: str) -> bytes:
        try:
            found = self._archive.read(self._members[name]) if self._archive else self._files[name].read_bytes()
        except MemoryError:
            raise
        except Exception as error:  # each compression raises different exceptions
            raise DataError(f"{self.where}: {name} cannot be read ({error}); restore it") from None
        self._digests[name] = hashlib.sha256(found).digest()
        return found

    def content(self) -> str:
        """Returns a key of the names and content of all pictures that were read."""
        digest = hashlib.sha256()
        for name in sorted(self._digests):
            digest.update(name.encode(errors="surrogateescape") + b"\n" + self._digests[name])
        return digest.hexdigest()

    def sizes(self) -> Iterator[str]:
        """Yields what is known of each picture without reading it, and is the same in a copy."""
        for name in sorted(self.names):
            yield f"{name} {self._members[name].file_size if self._archive else self._files[name].stat().st_size}"

    def stamps(self) -> Iterator[str]:
        """Yields what changes with a picture: a zip's checksums, or the folder's path and the files' sizes, times."""
        if self._archive:  # a zip that is copied or moved keeps its stamps
            yield from (f"{name} {m.file_size} {m.CRC:08x}" for name, m in sorted(self._members.items()))
        else:
            yield str(self.where.resolve())
            for name in sorted(self._files):
                stat = self._files[name].stat()
                yield f"{name} {stat.st_size} {stat.st_mtime_ns}"


def _within(paths: list[PurePosixPath], folder: str) -> list[str]:
    """Returns members' names: their paths below the first part that is called `folder`, or below all they share."""
    shared = os.path.commonpath([path.parent for path in paths]) if paths else ""

    def name(path: PurePosixPath) -> str:
        start = path.parts.index(folder) + 1 if folder in path.parts[:-1] else len(PurePosixPath(shared).parts)
        return "/".join(path.parts[start:])

    return list(map(name, paths))
