"""Decides who draws next: one drawing at a time, a bounded number waiting, in the order of arrival."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue


class Line:
    """A queue with room for `room` visitors, the one in front included. For one event loop."""

    def __init__(self, room: int):
        self.room = room
        self.turns: list[asyncio.Event] = []

    def join(self) -> asyncio.Event | None:
        """Returns an event that is set when it is the visitor's turn, or None if the line is full."""
        if len(self.turns) >= self.room:
            return None
        turn = asyncio.Event()
        self.turns.append(turn)
        self._call()
        return turn

    def leave(self, turn: asyncio.Event) -> None:
        """Gives the place back, from the front or from the middle."""
        self.turns.remove(turn)
        self._call()

    def ahead(self, turn: asyncio.Event) -> int:
        """Returns how many are before this one."""
        return self.turns.index(turn)

    def _call(self) -> None:
        if self.turns:
            self.turns[0].set()


def call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Calls in the loop's thread, from another one; not if the loop has ended, as the server's may in a drawing."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call)


class Worker:
    """Runs what the server's event loop gives it, in the thread that calls `run`."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def run(self) -> None:
        """Runs jobs forever. A job must not raise an Exception."""
        while True:
            self._jobs.get()()

    async def do(self, job: Callable[[], None]) -> None:
        """Runs the job and returns when it has ended; never if Ctrl-C ends it: half a drawing must not look whole."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def whole() -> None:
            job()
            call_soon(loop, done.set)

        self._jobs.put(whole)
        await done.wait()


class Stop:
    """Tells a drawing, in another thread, that nobody waits for it any more or that its time is over."""

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def set(self) -> None:
        self._stopped.set()

    def __bool__(self) -> bool:
        return self._stopped.is_set()
