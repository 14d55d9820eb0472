"""A terminal that goes away costs nothing: the run goes on, or ends as it was asked to, with what it had saved."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import HERE, SMOKE, finish, module_of, signal_after, start_stage
from tests.helpers import digest


def started(root, stderr, under=()):
    command = [*under, sys.executable, "-m", module_of("ldm"), "--config", SMOKE, f"root={root}", "ldm.log_every=1"]
    return subprocess.Popen(command, cwd=HERE, stderr=stderr, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "where", [*(pytest.param(where, marks=pytest.mark.faults) for where in ("full", "none")), "closed"]
)
def test_what_cannot_be_said_is_not_said(chain, chain_copy, where):
    """`2>/dev/full`, `2>&-`, and a reader that is gone, as in `2>&1 | head -1`: the run ends as one left alone."""
    folder = chain_copy / "smoke/ldm"
    folder.rename(chain_copy / "gone")
    if where == "full":
        with open("/dev/full", "w") as stderr:
            process = started(chain_copy, stderr)
    elif where == "none":
        process = started(chain_copy, None, under=("sh", "-c", 'exec "$@" 2>&-', "sh"))
    else:
        reader, writer = os.pipe()
        process = started(chain_copy, writer)
        os.close(writer)
        os.close(reader)
    assert process.wait() == 0
    assert digest(folder) == digest(chain / "smoke/ldm")


def test_a_signal_after_the_reader_is_gone_saves_first(chain_copy):
    """Ctrl-C in `make vae 2>&1 | tee log` ends tee too."""
    folder = chain_copy / "smoke/ldm"
    folder.rename(chain_copy / "gone")
    reader, writer = os.pipe()
    process = started(chain_copy, writer)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    while not list(folder.glob("step-*.ckpt")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert list(folder.glob("step-*.ckpt"))


def test_a_terminal_that_hangs_up_ends_it_as_sigterm_does(chain_copy):
    folder = chain_copy / "smoke/ldm"
    folder.rename(chain_copy / "gone")
    before = signal.signal(
        signal.SIGHUP, signal.SIG_DFL
    )  # started under nohup the tests would pass on its being ignored
    try:
        process = start_stage("ldm", f"root={chain_copy}")
    finally:
        signal.signal(signal.SIGHUP, before)
    status, said = signal_after(process, folder, signal.SIGHUP)
    assert (status, "Traceback" in said) == (129, False), said
    assert list(folder.glob("step-*.ckpt"))


@pytest.mark.faults
def test_ten_presses_of_ctrl_c_leave_no_traceback(chain_copy):
    folder = chain_copy / "smoke/ldm"
    folder.rename(chain_copy / "gone")
    process = start_stage("ldm", f"root={chain_copy}")
    while not list(folder.glob("step-*.ckpt")) and process.poll() is None:
        time.sleep(0.002)
    for _ in range(10):
        process.send_signal(signal.SIGINT)
        time.sleep(0.03)
    status, said = finish(process)
    assert status == 130, said
    assert "Traceback" not in said and "Exception ignored" not in said


def test_weights_that_are_not_finite_are_not_exported(stage, chain_copy):
    folder = chain_copy / "smoke/ldm"
    folder.rename(chain_copy / "gone")
    how = ("ldm.steps=1", "ldm.warmup=0", "ldm.learning_rate=1e38", "ldm.ema=0.0", "ldm.clip=null")
    status, said = stage("ldm", f"root={chain_copy}", *how)
    assert status == 2, said
    assert "is not finite after the last step" in said and "nothing is exported" in said
    assert not (folder / "export.safetensors").exists()
