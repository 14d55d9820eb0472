"""Reports mistakes to the user in one line: what is wrong, where, and how to fix it."""

import errno

FIXES = {
    errno.ENOSPC: "free space, or choose another place with root=DIR",
    errno.EDQUOT: "free space, or choose another place with root=DIR",
    errno.EACCES: "fix its permissions, or choose another place with root=DIR",
    errno.EPERM: "fix its permissions, or choose another place with root=DIR",
    errno.EROFS: "choose a place that can be written to with root=DIR",
    errno.EEXIST: "a file is where a folder should be: move it, or choose another place",
    errno.ENOTDIR: "a file is where a folder should be: move it, or choose another place",
    errno.EISDIR: "give a file, not a folder",
    errno.EMFILE: "allow more open files with `ulimit -n 4096`",
    errno.ENAMETOOLONG: "shorten it",
    errno.ELOOP: "the link leads to itself: remove it",
}


LONGEST = 2000  # characters of a message: a name from a file may be as long as the file


class UserError(Exception):
    """A mistake by the user, or a state only the user can fix. It is printed as `error: ...`, with exit status 2."""

    def __init__(self, text: str):
        # names come from files and may hold anything: a line break or an escape code must not reach the terminal
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


class Interrupted(BaseException):
    """A signal asked the run to stop. It is no Exception, so that `except Exception` does not catch it."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_status = 128 + signal_number


def oneline(error: BaseException) -> str:
    """Returns the first line of an exception's text, or its type's name if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def of_the_system(error: OSError, place: object = None) -> UserError:
    """Returns what the system refused as one line: place, reason, fix. Give `place` if the error does not name it."""
    where = place or error.filename or "the output folder"
    fix = FIXES.get(error.errno or 0, "fix this and run again")
    return UserError(f"{where}: {error.strerror or oneline(error)}; {fix}")


def is_out_of_memory(error: BaseException) -> bool:
    """Returns True if memory ran out: OutOfMemoryError, or a RuntimeError of a GPU's libraries or a CPU's allocator."""
    texts = ("can't allocate memory", "cannot allocate memory", "out of memory", "alloc_failed")
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or (isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts))
