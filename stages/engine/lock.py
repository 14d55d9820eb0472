"""One command a folder: a second one in it would overwrite the first one's files."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.engine import distributed
from stages.engine.errors import UserError


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Holds a stage's folder, or raises UserError where another command does, or waits for it.

    The main process holds it for all.

    The lock lies beside the folder, `.vae.lock` for `vae/`, so that the folder may be moved aside under it. The
    system lets go of it when the process ends, however it ends: none can be left behind.
    """
    if not distributed.is_main():
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{folder} is in use by another run (process {file.read().strip() or 'unknown'}); wait for it, "
                f"stop it, or give this one a `name=`"
            ) from None
        except OSError:
            pass  # a file system without locks: the run is worth more than the guard
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
