"""What is done: the pipeline and what is built on it.

Here are the pipeline, one Make target per module, and what its modules share: `commands`, `diffusion`, `judge` and
`models`.
"""

import os
import signal
import sys
from typing import Any


def _leave(number: int, frame: object) -> None:
    try:
        os.write(2, b"interrupted before it began\n")
    finally:  # also where the terminal is gone
        os._exit(128 + number)


def started_module() -> str | None:
    """Returns the module that `python -m` is starting, while its packages are still being imported; else None."""
    if sys.argv[:1] != ["-m"] or "-m" not in sys.orig_argv:
        return None
    return sys.orig_argv[sys.orig_argv.index("-m") + 1]


def _begin() -> None:
    """Answers signals, `--help` and mistakes before torch loads, while `python -m stages.X` is being started.

    The imports take seconds, and a command's own handlers come after them (stages/engine/command.py). When anything
    else imports `stages`, nothing happens here.
    """
    module = started_module() or ""
    if not module.startswith("stages.") or module == "stages.engine.config":  # the latter is what this would import
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch then uses Linux's huge pages: fewer page faults
    from stages.engine.terminal import ending_signals

    for number in ending_signals():
        signal.signal(number, _leave)
    from stages.commands import COMMANDS
    from stages.engine.arguments import answer_early

    if command := COMMANDS.get(module.removeprefix("stages.")):
        answer_early(command)


def __getattr__(name: str) -> Any:
    """Gives `from stages import load`, and the one type of its errors, `UserError`. torch loads with the first use."""
    if name in ("load", "UserError"):
        from stages.use import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_begin()
