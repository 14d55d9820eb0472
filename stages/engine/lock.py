"""Allows one command per folder: a second one would overwrite the first one's files."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.engine import distributed
from stages.engine.errors import UserError
from stages.engine.files import remove_temporary
from stages.engine.log import say


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Locks a stage's folder. If another command holds the lock, raises UserError or, with `wait`, waits for it.

    The main process holds it for all.

    The lock file is beside the folder, `.vae.lock` for `vae/`, so that the folder can be moved aside while it is
    locked. The system releases the lock when the process ends for any reason: none can be left behind. Whoever gets
    it removes the temporary files that a killed command left in the folder.
    """
    if not distributed.is_main():
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            other = file.read().strip() or "unknown"
            if not wait:
                raise UserError(
                    f"{folder} is in use by another run (process {other}); wait for it, stop it, or set another "
                    f"`name=` for this one"
                ) from None
            say(f"waiting for process {other}, which works on {folder} ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks: run without one rather than not at all
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        remove_temporary(folder)
        yield
