"""On a GPU: the chain twice to the same bits, compiled too. `ON_GPU=1 .venv/bin/python -m pytest -m gpu`."""

import pytest
import torch

from stages.engine.checkpoint import read_about

pytestmark = pytest.mark.gpu
STAGES = ("evaluator", "vae", "ldm", "gan")


def exports_of(stage, root, name: str, *changes: str) -> dict[str, str]:
    """The hashes of what the smoke chain leaves."""
    arguments = (f"root={root}", f"name={name}", f"data.folder={root}/smoke/render", "device=cuda", *changes)
    for part in (*STAGES, "evaluate"):
        status, said = stage(part, *arguments)
        assert status == 0, said
    return {part: read_about(root / name / part / "export.safetensors", "")["sha256"] for part in STAGES}


@pytest.fixture(scope="session")
def root(chain):
    assert torch.cuda.is_available(), "ON_GPU=1, and no GPU"
    return chain


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_chain_twice_gives_the_same_bits(stage, root, precision):
    how = ("deterministic=true", f"precision={precision}")
    try:
        first, second = (exports_of(stage, root, f"{name}-{precision}", *how) for name in "ab")
    finally:
        torch.use_deterministic_algorithms(False)
    assert first == second


def test_the_chain_runs_compiled(stage, root):
    exports_of(stage, root, "compiled", "ldm.compile=true", "eval.compile=true")
