"""Several commands in one folder: the second says whom it waits for, both may write one file, a run may move on."""

import errno
import os
import threading
from types import SimpleNamespace

import pytest
import torch

from stages.engine import files
from stages.engine.checkpoint import Checkpoints
from stages.engine.lock import locked
from stages.engine.log import MetricsLog, say
from stages.engine.run import Run
from tests.stages.handful import context_with


def test_who_waits_for_another_command_s_packing_says_for_whom(tmp_path, capsys):
    entered = threading.Event()

    def second():
        with locked(tmp_path / "packs", wait=True):
            entered.set()

    waiting = threading.Thread(target=second)
    with locked(tmp_path / "packs"):
        waiting.start()
        while not (said := capsys.readouterr().err):
            waiting.join(0.01)
        assert said == f"waiting for process {os.getpid()}, which works on {tmp_path / 'packs'} ...\n"
        assert not entered.is_set()
    waiting.join()
    assert entered.is_set()


def temporary_files(root, *folders):
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / ".name.suffix.1.tmp").write_bytes(b"half")
    return {path.parent.relative_to(root).as_posix() for path in root.rglob("*.tmp")}


def test_who_gets_a_folder_removes_what_a_killed_command_left_in_it(tmp_path):
    temporary_files(tmp_path, "packs", "packs/latents-1", "smoke/vae", "smoke/onestep", "smoke/onestep/pairs")
    context = context_with(f"root={tmp_path}")
    with locked(tmp_path / "packs"), context.held:
        context.hold("onestep")
        assert temporary_files(tmp_path) == {"packs/latents-1", "smoke/vae"}  # those may be held by others
        temporary_files(tmp_path, "smoke/onestep")  # its own, which it is writing
        context.hold("onestep")
        assert "smoke/onestep" in temporary_files(tmp_path)


@pytest.mark.parametrize("name", ["render", "evaluate"])
def test_scenes_and_reports_too_are_made_again_without_leftovers(stage, chain_copy, name):
    folder = chain_copy / "smoke" / {"evaluate": "eval"}.get(name, name)
    temporary_files(folder, ".")
    assert stage(name, f"root={chain_copy}")[0] == 0
    assert temporary_files(folder) == set()


def test_a_file_system_without_locks_is_no_reason_not_to_run(tmp_path, monkeypatch):
    def refused(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refused)
    with locked(tmp_path / "vae"):
        assert (tmp_path / ".vae.lock").read_text() == str(os.getpid())


def test_two_commands_that_write_one_picture_at_once_both_end(tmp_path, monkeypatch):
    """The second one writes and renames between the first one's writing and its renaming."""
    path, replace = tmp_path / "same.png", os.replace

    def interleaved(source, target):
        monkeypatch.setattr(files.os, "replace", replace)
        monkeypatch.setattr(files.os, "getpid", lambda: 1)
        files.write_atomically(path, b"second")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", interleaved)
    files.write_atomically(path, b"first")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("same.png", b"first")]


def test_a_run_that_goes_on_on_another_device_says_so(tmp_path, capsys):
    run = Run(context_with(f"root={tmp_path}"), "ldm", {"data": "d"})
    store, log = Checkpoints(run.folder, 2, say), MetricsLog(run.folder, 1, 4, 8, "x")
    for device, told in (("cpu", False), ("cuda", True)):
        state = {"identity": run.identity, "parts": {}, "log": log.state_dict(), "seconds": 1.0}
        store.save(2, state | {"device": device})
        assert run._restore(store, SimpleNamespace(parts={}), log) == (1.0, 2)
        assert ("started on cuda, now on cpu: the random numbers differ" in capsys.readouterr().err) == told
    assert not torch.cuda.is_initialized()
