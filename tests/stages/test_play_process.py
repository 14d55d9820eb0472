"""`make play` as a process: what ends its start, how Ctrl-C ends it, whom it lets in."""

import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from stages.engine.errors import UserError
from tests.conftest import HERE, SMOKE, finish, make
from tests.helpers import assert_one_line
from tests.stages.playing import TWO, opened, start

pytest.importorskip("uvicorn", reason="the extra [play] is not installed: make play")


def test_what_cannot_be_served_ends_the_start_in_one_line(tmp_path):
    from stages.play.__main__ import listen

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is taken; choose another with PORT={port + 1}"):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match="no such address"):
        listen("127..0.1", 0)
    with pytest.raises(UserError, match="no such address"):
        listen("no.such.host.invalid", 0)
    assert_one_line(*finish(start("--port", "70000")), "--port 70000")
    assert_one_line(*finish(start(f"root={tmp_path}")), "make")


def test_without_the_extra_it_names_the_command_that_installs_it():
    code = (
        "import sys, runpy; sys.modules['uvicorn'] = None\n"
        f"sys.argv = ['play', '--config', '{SMOKE}']; runpy.run_module('stages.play', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert_one_line(*finish(process), "uvicorn is not installed", "make play")


def test_ctrl_c_ends_it_at_once_also_in_the_middle_of_a_drawing(chain):
    process = start(f"root={chain}")
    port = int(re.search(r":(\d+)", process.stdout.readline().removeprefix("play at http:"))[1])
    with opened(port, b'"step"', TWO | {"models": ["ldm"], "count": 8, "steps": 100}) as drawing:
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        status, said = finish(process)
        assert time.monotonic() - began < 3
        assert (status, said.split()) == (130, ["stopped"])
        left = b""
        with suppress(ConnectionError):
            while part := drawing.recv(65536):
                left += part
        assert b'"done"' not in left


def test_others_are_let_in_only_by_name_and_with_a_warning(capsys, monkeypatch):
    from stages.play.__main__ import announce, is_local, listen

    with listen("127.0.0.1", 0) as own:
        announce(own, "127.0.0.1")
        assert is_local(own) and capsys.readouterr().err == ""
    with listen("0.0.0.0", 0) as every:
        announce(every, "0.0.0.0")
        said = capsys.readouterr()
        assert not is_local(every) and "no password" in said.err
        port = every.getsockname()[1]
        assert f"http://localhost:{port}," in said.out and f"http://{socket.gethostname()}:{port} " in said.out
    monkeypatch.setenv("HOST", "0.0.0.0")  # some shells export it
    assert "--host" not in make("-n", "play").stdout
    assert '--host "0.0.0.0"' in make("-n", "play", "HOST=0.0.0.0").stdout
