"""On a GPU the chain gives the same bits twice, and runs compiled. `ON_GPU=1 .venv/bin/python -m pytest -m gpu`."""

import pytest
import torch

from stages.engine.export import read_about

pytestmark = pytest.mark.gpu
STAGES = ("evaluator", "vae", "ldm", "gan")


def exports_of(stage, scenes, root, name: str, *changes: str) -> dict[str, str]:
    """Runs the smoke chain. Returns the hashes of its exports."""
    assert torch.cuda.is_available(), "ON_GPU=1, and no GPU"
    arguments = (f"root={root}", f"name={name}", f"data.folder={scenes}/smoke/render", "device=cuda", *changes)
    for part in (*STAGES, "evaluate"):
        status, said = stage(part, *arguments)
        assert status == 0, said
    return {part: read_about(root / name / part / "export.safetensors", "")["sha256"] for part in STAGES}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_chain_twice_gives_the_same_bits(stage, chain, tmp_path, precision):
    how = ("deterministic=true", f"precision={precision}")
    try:
        first, second = (exports_of(stage, chain, tmp_path, name, *how) for name in "ab")
    finally:
        torch.use_deterministic_algorithms(False)
    assert first == second


@pytest.mark.parametrize("how", ["true", "cuda-graphs"])
def test_the_chain_runs_compiled(stage, chain, tmp_path, how):
    before = torch._dynamo.utils.counters["frames"]["ok"]
    exports_of(stage, chain, tmp_path, "compiled", f"ldm.compile={how}", f"eval.compile={how}")
    assert torch._dynamo.utils.counters["frames"]["ok"] > before
