"""Killed and resumed runs equal uninterrupted ones, bit for bit; real processes receive real signals."""

import signal
import time
from pathlib import Path

import pytest

from tests.conftest import finish, signal_after, start_stage
from tests.helpers import digest, interrupted_at, lines

FAULTS = pytest.mark.faults  # long: part of `make faults`


@pytest.mark.parametrize(
    ("name", "number", "status"),
    [
        ("vae", signal.SIGKILL, -9),
        *(pytest.param(name, signal.SIGKILL, -9, marks=FAULTS) for name in ("evaluator", "ldm", "gan")),
        pytest.param("vae", signal.SIGINT, 130, marks=FAULTS),
        pytest.param("ldm", signal.SIGTERM, 143, marks=FAULTS),
    ],
)
def test_an_interrupted_run_equals_an_uninterrupted_one(stage, chain, chain_copy, name, number, status):
    folder = chain_copy / "smoke" / name
    folder.rename(chain_copy / "gone")
    ended, said = signal_after(start_stage(name, f"root={chain_copy}"), folder, number)
    assert ended == status, said
    assert "Traceback" not in said
    assert_it_goes_on(stage, chain, chain_copy, name)


@pytest.mark.parametrize(("name", "number", "status"), [("vae", signal.SIGINT, 130), ("ldm", signal.SIGTERM, 143)])
def test_a_run_that_is_told_to_end_in_a_step_goes_on(stage, chain, chain_copy, monkeypatch, name, number, status):
    """As above, but inside this process, which has imported torch already."""
    (chain_copy / "smoke" / name).rename(chain_copy / "gone")
    with interrupted_at(3, monkeypatch, number):
        ended, said = stage(name, f"root={chain_copy}")
    assert ended == status, said
    assert "Traceback" not in said
    assert_it_goes_on(stage, chain, chain_copy, name)


def assert_it_goes_on(stage, chain, chain_copy, name):
    """The interrupted stage, run again, ends as the chain's did."""
    whole, folder = chain / "smoke" / name, chain_copy / "smoke" / name
    assert not (folder / "export.safetensors").exists(), "it was not interrupted in time"
    ended, said = stage(name, f"root={chain_copy}")
    assert ended == 0, said
    assert "continuing at step" in said
    assert digest(folder) == digest(whole)
    assert lines(folder) == lines(whole)
    assert not list(folder.glob(".*.tmp"))


def test_residual_codebooks_go_on_to_the_bit(stage, chain_copy, monkeypatch):
    """Dead codes are replaced in every step, at random."""
    uses = (f"root={chain_copy}", f"data.folder={chain_copy}/smoke/render", "uses.evaluator=smoke")
    settings = (*uses, "vae.quantizer=residual", "vae.residual.codes=32", "vae.residual.dead_below=4.0")
    whole, folder = chain_copy / "whole/vae", chain_copy / "ended/vae"
    assert stage("vae", *settings, "name=whole")[0] == 0
    with interrupted_at(2, monkeypatch):
        ended, said = stage("vae", *settings, "name=ended")
    assert ended == 130, said
    assert not (folder / "export.safetensors").exists(), "it was not interrupted in time"
    ended, said = stage("vae", *settings, "name=ended")
    assert (ended, "continuing at step" in said) == (0, True), said
    assert digest(folder) == digest(whole)
    assert lines(folder) == lines(whole)


def wait_until_caught(process, number):
    """Returns once the process has a handler of its own for that signal, or has ended."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        time.sleep(0.3)
    while status.exists() and process.poll() is None:
        caught = next((line for line in status.read_text().splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
        if int(caught.split()[1], 16) >> (number - 1) & 1:
            return
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_leaves_no_traceback(chain_copy, number):
    process = start_stage("ldm", f"root={chain_copy}")
    wait_until_caught(process, signal.SIGTERM)  # Python has none; SIGINT, which it has, is the command's before that
    process.send_signal(number)
    status, said = finish(process)
    assert (status, "Traceback" in said) == (128 + number, False), said
    assert "interrupted" in said


def test_twice_the_same_command_gives_the_same_bits(stage, chain, chain_copy):
    (chain_copy / "smoke/ldm").rename(chain_copy / "gone")
    assert stage("ldm", f"root={chain_copy}")[0] == 0
    assert digest(chain_copy / "smoke/ldm") == digest(chain / "smoke/ldm")


def test_a_damaged_newest_checkpoint_gives_way_and_the_run_ends_the_same(stage, chain, chain_copy):
    folder = chain_copy / "smoke/vae"
    (folder / "export.safetensors").unlink()
    newest = max(folder.glob("step-*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    ended, said = stage("vae", f"root={chain_copy}")
    assert ended == 0, said
    assert f"warning: {newest} is damaged" in said
    assert newest.with_suffix(".damaged").exists()
    assert digest(folder) == digest(chain / "smoke/vae")
    assert lines(folder) == lines(chain / "smoke/vae")


def test_rendering_goes_on_where_it_was_killed(stage, chain, tmp_path):
    folder = tmp_path / "smoke/render"
    process = start_stage("render", f"root={tmp_path}")
    ended, said = signal_after(process, folder, signal.SIGTERM, "iclevr/CLEVR*.png")
    assert ended == 143, said
    assert not (folder / "train.json").exists()
    assert stage("render", f"root={tmp_path}")[0] == 0
    for name in ("train.json", "validation.json", "test.json"):
        assert (folder / name).read_bytes() == (chain / "smoke/render" / name).read_bytes()
    pictures = {p.name: p.read_bytes() for p in (folder / "iclevr").iterdir()}
    assert pictures == {p.name: p.read_bytes() for p in (chain / "smoke/render/iclevr").iterdir()}
