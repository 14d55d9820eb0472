"""What a command sets up before its stage runs."""

import pytest
import torch

from stages.engine.command import has_fast_bfloat16, precision_of
from stages.engine.config import load
from tests.conftest import HERE, SMOKE

CPU = torch.device("cpu")


@pytest.mark.parametrize("fast", [False, True])
def test_the_precision_is_the_one_asked_for_and_by_itself_that_of_the_processor(monkeypatch, fast):
    monkeypatch.setattr("stages.engine.command.has_fast_bfloat16", lambda device: fast)
    found = {kind: precision_of(load(HERE / SMOKE, [f"precision={kind}"]), CPU) for kind in ("float32", "bfloat16")}
    assert found == {"float32": torch.float32, "bfloat16": torch.bfloat16}
    assert precision_of(load(HERE / SMOKE), CPU) == (torch.bfloat16 if fast else torch.float32)


@pytest.mark.parametrize(("flags", "fast"), [("avx512_bf16", True), ("amx_bf16", True), ("avx512f avx2", False)])
def test_a_processor_with_either_unit_multiplies_bfloat16(monkeypatch, flags, fast):
    monkeypatch.setattr("stages.engine.command.Path.read_text", lambda path: f"flags\t\t: fpu {flags} sse")
    assert has_fast_bfloat16(CPU) == fast
