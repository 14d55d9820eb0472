"""Writes files completely or not at all."""

import os
from contextlib import suppress
from pathlib import Path

from stages.engine.errors import of_the_system


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
