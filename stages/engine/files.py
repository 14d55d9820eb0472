"""Reads and writes files: what is written is there completely or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from stages.engine.errors import UserError, of_the_system, oneline


def write_atomically(path: Path, *content: bytes | memoryview) -> None:
    """Writes a file completely or not at all: temporary file in the same folder, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two commands may write one picture
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            for part in content:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # also when interrupted: the file of a pack may be as large as the disk
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise of_the_system(error, f"cannot write {path}") from None
        raise
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_temporary(folder: Path) -> None:
    """Removes what a killed command had not written whole. Only for who holds the folder: another may be writing."""
    for stale in folder.glob(".*.tmp"):
        with suppress(OSError):  # it does no harm
            stale.unlink()


@contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """Context manager: a folder beside `folder` to fill, which gets its name at the end. A failure leaves nothing.

    An empty folder of that name is replaced; move another one aside before the end.
    """
    folder = Path(os.path.abspath(folder))  # `.` too has a name
    partly = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        partly.mkdir(parents=True)
        yield partly
        if folder.is_dir():
            folder.rmdir()  # refused unless it is empty
        partly.rename(folder)
    except OSError as error:
        raise of_the_system(error, f"cannot write {folder}") from None
    except SafetensorError as error:  # its words for a full disk, among others
        raise UserError(f"cannot write {folder}: {oneline(error)}; free space, or name another folder") from None
    finally:
        shutil.rmtree(partly, ignore_errors=True)


def from_json(text: str) -> Any:
    """Returns what a JSON text holds. Raises ValueError, also for nesting that is too deep to be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(oneline(error)) from None


def read_json(path: Path) -> dict:
    """Returns the object in a JSON file that can be made again, {} if the file is missing or damaged."""
    try:
        content = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
