"""Helpers for tests of `make export`. Importing it skips a test file where the extra `export` is not installed."""

import subprocess
import sys

import pytest
import torch

from stages import commands

onnx, onnxscript, onnxruntime, huggingface_hub = (
    pytest.importorskip(name, reason="needs the extra `export`: make setup-export") for name in commands.EXPORT_NEEDS
)

from stages.use import graphs, hub  # noqa: E402, F401 (after what skips)
from stages.use.export import _layouts_of, add_model  # noqa: E402, F401
from stages.use.folder import Folder  # noqa: E402, F401

SIZES = ((1, 1), (2, 3), (5, 4))  # rows and slots


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def drawn_inputs(rows, slots):
    """x, t, objects, places, keep: objects from one to `slots`, a place for each second."""
    draw = torch.Generator().manual_seed(rows)
    objects = torch.randint(24, (rows, slots), generator=draw)
    objects[-1, slots // 2 + 1 :] = -1
    places = torch.rand(rows, slots, 2, generator=draw)
    places[:, 1::2] = -1.0
    places[objects < 0] = -1.0
    return torch.randn(rows, 6, 8, 8, generator=draw), torch.arange(rows) * 19, objects, places, torch.arange(rows) > 0


def drawn_by_the_script(exported, *arguments):
    """Runs the exported script as a stranger does: from another folder, without the project in the path, or torch."""
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-I", "-c", code, str(exported / "draw.py"), *arguments]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=300)
