"""The one way a stage tells its user of a mistake: a line that says what, where and the mend."""

import errno

MENDS = {
    errno.ENOSPC: "free space, or choose another place with root=DIR",
    errno.EDQUOT: "free space, or choose another place with root=DIR",
    errno.EACCES: "mend its permissions, or choose another place with root=DIR",
    errno.EPERM: "mend its permissions, or choose another place with root=DIR",
    errno.EROFS: "choose a place that can be written to with root=DIR",
    errno.EMFILE: "allow more open files with `ulimit -n 4096`",
    errno.ENAMETOOLONG: "shorten it",
    errno.ELOOP: "the link leads to itself: remove it",
}


class UserError(Exception):
    """A mistake of the user's, or a state only the user can mend. Printed as `error: ...`, exit status 2."""

    def __init__(self, text: str):
        # names come from files and may hold anything: a line break or an escape code must not reach the terminal
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


class Interrupted(BaseException):
    """The run was asked to stop by a signal. No `except Exception` may take it for a fault."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_status = 128 + signal_number


def oneline(error: BaseException) -> str:
    """The first line of an exception's text, or its type's name where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def of_the_system(error: OSError, place: object = None) -> UserError:
    """What the system refused, as one line: place, reason, mend. `place` where the error itself names none."""
    where = place or error.filename or "the output folder"
    mend = MENDS.get(error.errno, "see to it and run again")
    return UserError(f"{where}: {error.strerror or oneline(error)}; {mend}")


def is_out_of_memory(error: BaseException) -> bool:
    """A GPU raises OutOfMemoryError or a RuntimeError of its libraries, a CPU a RuntimeError of its allocator."""
    texts = ("can't allocate memory", "cannot allocate memory", "out of memory", "alloc_failed")
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or (isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts))
