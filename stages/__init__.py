"""What is done: the pipeline, one Make target a module; experiments/ and benchmark/ are what is built on it."""

import os
import signal


def _leave(number: int, frame: object) -> None:
    os.write(2, b"interrupted before it began\n")
    os._exit(128 + number)


def _begin() -> None:
    """While `python -m stages.X` is being started: signals, `--help` and mistakes are answered before torch loads.

    The imports take seconds, and a command's own handlers come after them (stages/engine/command.py). Where `stages`
    is imported by anything else nothing happens here.
    """
    from stages.engine.arguments import answer_early, started_module

    module = started_module() or ""
    if not module.startswith("stages."):
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    from stages.commands import COMMANDS

    if command := COMMANDS.get(module.removeprefix("stages.")):
        answer_early(command)


_begin()
