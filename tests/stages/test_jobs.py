"""Children: one a core, in order, never two in one folder; none survives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.engine.errors import UserError
from stages.experiments.jobs import Job, cores_for, run_jobs
from tests.conftest import HERE
from tests.helpers import wait_for

CORE = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
# notes its start, core and threads; then works until it is asked to stop, or for the seconds given
CHILD = """
import os, signal, sys, time
sys.path.insert(0, {here!r})
from stages.experiments.jobs import end_with_the_parent
folder, name, seconds = sys.argv[1:]
def note(what):
    with open(folder + '/notes', 'a') as file:
        file.write(name + ' ' + what + chr(10))
def stop(number, frame):
    note('saved'); os._exit(143)
signal.signal(signal.SIGTERM, stop)
note(' '.join(['began', os.environ['OMP_NUM_THREADS'], *map(str, sorted(os.sched_getaffinity(0)))]))
end_with_the_parent()
if float(seconds) < 100:
    print('hello')  # a long one's reader may be gone by now
for _ in range(int(20 * float(seconds))):
    time.sleep(0.05)  # in short pieces: a signal just before a long one would be answered after it
note('ended')
sys.exit(name == 'bad')
"""


def job(folder: Path, name: str, seconds: float, *holds: str) -> Job:
    words = ("-c", CHILD.format(here=str(HERE)), str(folder), name, str(seconds))
    return Job(name, words, frozenset(map(Path, holds)))


def notes(folder: Path) -> list[str]:
    return (folder / "notes").read_text().splitlines() if (folder / "notes").exists() else []


def test_jobs_run_in_order_one_a_core_and_none_shares_a_folder(tmp_path):
    ended, said = [], []
    jobs = [job(tmp_path, "a", 1, "x"), job(tmp_path, "b", 0, "x"), job(tmp_path, "bad", 0, "y")]
    assert run_jobs(jobs, [CORE, CORE], None, lambda *found: ended.append(found), said.append) == []
    assert dict(ended) == {"a": 0, "b": 0, "bad": 1}
    assert "a: hello" in said and "bad: hello" in said
    said = notes(tmp_path)
    assert said.index("a ended") < said.index(f"b began 1 {CORE}"), "both hold x"
    assert said.index(f"bad began 1 {CORE}") < said.index("a ended"), "nothing keeps it waiting"


def test_at_the_deadline_they_are_asked_to_stop_and_the_rest_is_left(tmp_path):
    jobs = [job(tmp_path, "long", 500), job(tmp_path, "next", 0)]
    began = time.monotonic()
    left = run_jobs(jobs, [CORE], began + 4, lambda *found: None, print)
    assert left == ["long", "next"] and time.monotonic() - began < 60
    assert notes(tmp_path)[-1:] in ([], ["long saved"], [f"long began 1 {CORE}"]), "it may not have begun by then"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_child_survives_its_parent(tmp_path, number):
    jobs = [list(job(tmp_path, name, 500).words) for name in "ab"]
    code = (
        f"import signal, sys; sys.path.insert(0, {str(HERE)!r}); from stages.experiments.jobs import Job, run_jobs;"
        # the tests themselves may have been started in the background, where SIGINT is ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"jobs = [Job(words[3], tuple(words), frozenset()) for words in {jobs!r}];"
        f"run_jobs(jobs, [{CORE}, {CORE}], None, print, print)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, cwd=HERE)
    wait_for(lambda: len(notes(tmp_path)) == 2)
    parent.send_signal(number)
    parent.wait(60)
    wait_for(lambda: sorted(notes(tmp_path))[1::2] == ["a saved", "b saved"])


def test_a_killed_child_is_reported_and_the_others_go_on(tmp_path):
    ended = {}
    killer = job(tmp_path, "killed", 0)
    killer = Job("killed", (*killer.words[:1], "import os; os.kill(os.getpid(), 9)"), killer.holds)
    run_jobs([killer, job(tmp_path, "b", 0)], [CORE], None, ended.__setitem__, print)
    assert ended == {"killed": -signal.SIGKILL, "b": 0}


def test_a_child_that_fails_when_it_is_asked_to_stop_is_reported(tmp_path):
    ended, folder = {}, str(tmp_path)
    code = f"import sys; open({folder!r} + '/notes', 'w').close(); sys.stdin.read(); sys.exit(1)"
    deadline = time.monotonic() + 4
    assert run_jobs([Job("fails", ("-c", code), frozenset())], [CORE], deadline, ended.__setitem__, print) == []
    assert ended == {"fails": 1} and (tmp_path / "notes").exists()


def test_more_jobs_than_cores_are_one_line(monkeypatch):
    with pytest.raises(UserError, match="--jobs 4000: this machine has"):
        cores_for(4000, on_cpu=True)
    assert cores_for(3, on_cpu=False) == [None] * 3
    assert cores_for(1, on_cpu=True) == [CORE]
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {1}, raising=False)
    assert cores_for(2, on_cpu=True) == [1], "pinned to one of two cores: one at a time"
