"""Parses a command's arguments without torch: `--help` and configuration mistakes are answered before its import."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from stages import started_module
from stages.engine.config import Config, load
from stages.engine.errors import UserError, of_the_system


def add_fresh(parser: argparse.ArgumentParser) -> None:
    """Adds --fresh, the flag of every stage that keeps a run folder."""
    parser.add_argument(
        "--fresh", action="store_true", help="start again; an old run is moved aside, nothing is deleted"
    )


def make_command(words: str, config: str, overrides: Sequence[str]) -> str:
    """Returns the Make command of these targets with a configuration and overrides, as a shell takes it."""
    told = shlex.join(overrides).replace("$", "$$")  # which Make makes one of
    command = f"make {words} CONFIG={shlex.quote(config)}"
    return f"{command} SET={shlex.quote(told)}" if told else command


@dataclass(frozen=True)
class Command:
    """A command's help and flags. One that is `alone` runs in one process only.

    `check(arguments, config)` raises UserError for what can be known before anything runs.
    """

    description: str
    flags: Callable[[argparse.ArgumentParser], None] = add_fresh
    alone: bool = False
    check: Callable[[argparse.Namespace, Config], None] = lambda arguments, config: None


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument like any other mistake: one line `error: ...`, exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see `{self.prog} --help`\n")


def running_module() -> str:
    """Returns the name of the running module, as given to `python -m`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return started_module() or (spec.name if spec else Path(sys.argv[0]).stem)


def read_arguments(command: Command) -> argparse.Namespace:
    """Parses the command line. Exits with status 0 after `--help`, with 2 and one line after a mistake."""
    parser = Parser(
        prog=f"python -m {running_module()}",
        description=command.description,
        epilog="Overrides come last: section.key=value, such as ldm.steps=2000 or root=/tmp/out. "
        "Exit status: 0 done, 2 user error (one line explains it), 129, 130 or 143 interrupted.",
    )
    parser.add_argument(
        "--config",
        default="configs/demo.yaml",
        type=os.path.expanduser,
        metavar="FILE",
        help="the experiment (default: %(default)s)",
    )
    parser.add_argument("--check", action="store_true", help="only check the command line and the configuration")
    command.flags(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="replace a value of the configuration"
    )
    return parser.parse_intermixed_args()


def read_configuration(command: Command, arguments: argparse.Namespace) -> Config:
    """Loads the configuration that the arguments name. Raises UserError."""
    if command.alone and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{running_module()} runs in one process: start it without torchrun")
    config = load(arguments.config, arguments.overrides)
    command.check(arguments, config)
    return config


def answer_early(command: Command) -> None:
    """Checks the command line and the configuration, and exits if either has a mistake."""
    arguments = read_arguments(command)
    try:
        read_configuration(command, arguments)
    except (UserError, OSError) as fault:  # of the system: a folder that may not be read
        error = of_the_system(fault) if isinstance(fault, OSError) else fault
        if int(os.environ.get("RANK", "0")) > 0:
            time.sleep(2)  # the main process reports for all, and torchrun ends this one
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    if arguments.check:
        sys.exit(0)
