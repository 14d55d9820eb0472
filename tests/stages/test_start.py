"""What a command sets before torch loads, and that a mere import sets nothing."""

import os
import signal
import sys

import pytest

import stages

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
