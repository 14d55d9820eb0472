"""Output that may fail at any time: a lost terminal, a closed pipe or a full disk must not end a run."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


def ending_signals() -> list[signal.Signals]:
    """Returns the signals that end a command. SIGHUP is not among them where it is ignored, as under nohup."""
    hung_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hung_up]


def ignore_signals() -> None:
    """Ignores all further signals: the command is ending, and a second Ctrl-C would only show a traceback."""
    for number in ending_signals():
        signal.signal(number, signal.SIG_IGN)


def write_at_once(text: str) -> None:
    """Writes to the terminal from a signal handler, which must not touch buffered streams."""
    with suppress(OSError):
        os.write(2, text.encode())


class _Forgiving:
    """A text stream whose failing writes are dropped."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def _silence(stream: TextIO) -> None:
    """Discards what a stream still holds if it cannot be written: Python's own flush at exit would fail."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


@contextmanager
def forgiving_output() -> Iterator[None]:
    """Drops writes to stdout and stderr that fail, within the context."""
    before = sys.stdout, sys.stderr
    streams = [stream or open(os.devnull, "w") for stream in before]  # noqa: SIM115 (None where it was closed: `2>&-`)
    sys.stdout, sys.stderr = (_Forgiving(stream) for stream in streams)
    try:
        yield
    finally:
        for stream in streams:
            _silence(stream)
        sys.stdout, sys.stderr = before
