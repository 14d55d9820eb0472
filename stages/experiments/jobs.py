"""Runs trainings as child processes, one a core. They end when this process ends, whatever ends it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.engine.errors import UserError

PATIENCE = 120.0  # seconds in which a child that was asked to stop may finish its step and save
POLL = 0.1  # seconds
# exit statuses of a child that stopped where it stood, as it was asked to, or was killed because it did not
STOPPED = {128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Job:
    """A command of Python, the words after `python`. Two jobs that hold the same folder never run together."""

    key: str
    words: tuple[str, ...]
    holds: frozenset[Path]


class _Child:
    """A running job. Its standard input is a pipe that only this process holds open, so it closes with it."""

    def __init__(self, job: Job, core: int | None, tell: Callable[[str], None]):
        self.job, self.core, self._tell = job, core, tell
        environment = os.environ | ({} if core is None else ONE_THREAD)
        self.process = subprocess.Popen(
            [sys.executable, *job.words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C reaches this process only, which then asks its children
        )
        if core is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.process.pid, {core})
        self._speaker = threading.Thread(target=self._forward, daemon=True)
        self._speaker.start()

    def _forward(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._tell(f"{self.job.key}: {line.rstrip()}")

    def ask_to_stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait(self) -> int:
        """Waits for the end and for all that it said. A child that does not end in time is killed."""
        try:
            status = self.process.wait(PATIENCE + 10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self._speaker.join()
        return status


def end_with_the_parent() -> None:
    """Makes this child stop, as by SIGTERM, once standard input, its parent's pipe, closes."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def cores_for(jobs: int, on_cpu: bool) -> list[int | None]:
    """Returns a core for each of at most `jobs` processes at once; on a GPU none is pinned.

    A process that is pinned to fewer cores than `jobs` gets these. Raises UserError if the machine has fewer.
    """
    if not on_cpu:
        return [None] * jobs
    most = os.cpu_count() or 1
    if jobs > most:
        raise UserError(f"--jobs {jobs}: this machine has {most} cores; lower it (Make: JOBS={most})")
    free = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(most)]
    return [*free[:jobs]]


def run_jobs(
    jobs: Sequence[Job],
    cores: Sequence[int | None],
    deadline: float | None,
    ended: Callable[[str, int], None],
    tell: Callable[[str], None],
) -> list[str]:
    """Runs jobs in their order, one a core, and calls `ended(key, exit status)` after each.

    `tell` gets each line that one of them says.

    On a CPU each has one thread, so that its bits do not depend on how many run. `deadline`: of time.monotonic(), when
    those that run are asked to stop. Returns the keys of all that did not finish.
    """
    waiting, running = [*jobs], list[_Child]()
    try:
        while (waiting or running) and (deadline is None or time.monotonic() < deadline):
            for core in cores:
                held = frozenset[Path]().union(*(child.job.holds for child in running))
                job = next((job for job in waiting if not job.holds & held), None)
                if job and sum(child.core == core for child in running) < cores.count(core):
                    waiting.remove(job)
                    running.append(_Child(job, core, tell))
            for child in [child for child in running if child.process.poll() is not None]:
                running.remove(child)
                ended(child.job.key, child.wait())
            time.sleep(POLL)
    finally:  # also when interrupted
        for child in running:
            child.ask_to_stop()
        last = {child.job.key: child.wait() for child in running}
    for key in [key for key, status in last.items() if status not in STOPPED]:  # it ended or failed just then
        ended(key, last.pop(key))
    return [*last, *(job.key for job in waiting)]
