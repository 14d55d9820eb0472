"""What a command sets before torch loads, and that a mere import sets nothing."""

import errno
import os
import signal
import sys
from dataclasses import replace

import pytest

import stages
from stages.commands import COMMANDS
from stages.engine.arguments import answer_early
from tests.conftest import SMOKE
from tests.helpers import assert_one_line

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


@pytest.mark.parametrize(("module", "before", "after"), [
    ("stages.nothing", None, "1"),
    ("stages.nothing", "0", "0"),
    ("pytest", None, None),
])  # fmt: skip
def test_a_command_lets_torch_use_huge_pages_unless_told(module, before, after, monkeypatch):
    monkeypatch.setattr(os, "environ", {} if before is None else {HUGE_PAGES: before})
    monkeypatch.setattr(signal, "signal", lambda *handler: None)
    monkeypatch.setattr(sys, "argv", ["-m"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", module])
    stages._begin()
    assert os.environ.get(HUGE_PAGES) == after


def test_a_folder_that_may_not_be_read_is_one_line_before_torch_loads(monkeypatch, capsys):
    def check(arguments, config):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "checkpoints/smoke/ldm")

    monkeypatch.setattr(sys, "argv", ["ldm", "--config", str(SMOKE)])
    with pytest.raises(SystemExit) as end:
        answer_early(replace(COMMANDS["ldm"], check=check))
    assert_one_line(end.value.code, capsys.readouterr().err, "checkpoints/smoke/ldm: Permission denied")
