"""The benchmark runs on the smoke configuration and compares equal work."""

import json
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch

from stages.benchmark import cell, clock, peers, plain
from stages.benchmark.subject import Subject
from stages.engine.command import context_of
from stages.engine.config import load
from tests.conftest import SMOKE
from tests.helpers import assert_one_line


def test_its_rows_are_medians_of_calls_in_turn():
    context, calls = SimpleNamespace(device=torch.device("cpu"), arguments=SimpleNamespace(seconds=0.0)), []
    times = clock.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, context)
    assert calls == ["a", "b"] * (clock.REPEATS + 1)
    assert [len(t) for t in times.values()] == [clock.REPEATS] * 2


def test_a_time_covers_as_many_calls_as_take_long_enough():
    context, calls = SimpleNamespace(device=torch.device("cpu"), arguments=SimpleNamespace(seconds=0.02)), []

    def work() -> None:
        calls.append(0)
        time.sleep(0.004)

    times = clock.interleaved({"": work}, context)[""]
    assert len(calls) in [2 * n - 1 + n * clock.REPEATS for n in (2, 4, 8)]  # 1, 2, 4, 8 to warm up; fewer if slow
    assert 0.004 <= min(times) <= max(times) < 0.02


def test_every_axis_of_growth_makes_a_step(tmp_path):
    arguments = SimpleNamespace(seconds=0.0, fresh=False)
    with ExitStack() as held:
        context = context_of(load(SMOKE, [f"root={tmp_path}"]), arguments, 0.0, held)
        subject = Subject(context, tmp_path / "work")
        for values, step_of in cell.AXES.values():
            step_of(subject, min(values))()


def test_the_page_of_a_small_bench(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "REPEATS", 1)
    status, said = stage("bench", f"root={tmp_path}", "--seconds", "0", "--only", "vae,gan,few-steps,reading")
    assert status == 0, said
    result = json.loads((tmp_path / "smoke/bench/report.json").read_text())
    assert len(result["rows"]) == 4
    for row in result["rows"]:
        assert all(s > 0 for s in row["ours"])
        assert row["others"]
    assert "times ours" in (tmp_path / "smoke/bench/report.md").read_text()


def test_a_bench_without_a_compiler_leaves_out_what_is_compiled(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "REPEATS", 1)
    monkeypatch.setenv("CXX", "/nonexistent/compiler")
    only = "ldm-compiled,sampling-compiled,reading,rates"
    status, said = stage("bench", f"root={tmp_path}", "--seconds", "0", "--only", only)
    assert status == 0, said
    assert "/nonexistent/compiler" in said
    result = json.loads((tmp_path / "smoke/bench/report.json").read_text())
    assert [row["what"].split()[-1] for row in result["rows"]] == ["loop"]
    assert list(result["rates"]) == ["ldm", "vae", "gan"]


def test_growth_measures_steps_packs_and_processes(stage, tmp_path, monkeypatch):
    monkeypatch.setitem(cell.AXES, "LDM: batch", ((4, 8), cell.AXES["LDM: batch"][1]))
    only = ("--only", "LDM: batch,pictures,processes", "--pictures", "640", "--seconds", "0")
    status, said = stage("growth", f"root={tmp_path}", *only)
    assert status == 0, said
    result = json.loads((tmp_path / "smoke/growth/report.json").read_text())
    assert [row[:2] for row in result["steps"]] == [["LDM: batch", "4"], ["LDM: batch", "8"]]
    assert [row[0] for row in result["pictures"]] == ["640"]
    assert [row[0] for row in result["processes"]] == ["1", "2"]
    assert not list(tmp_path.rglob("pack.safetensors"))


@pytest.mark.parametrize("bad", ["--pictures=many", "--pictures=3", "--only=sleep", "--seconds=nan"])
def test_a_wrong_flag_of_growth_is_one_line(stage, tmp_path, bad):
    assert_one_line(*stage("growth", f"root={tmp_path}", bad), bad.split("=")[1])


def test_an_unknown_row_is_one_line(stage, tmp_path):
    assert_one_line(*stage("bench", f"root={tmp_path}", "--only", "ldm,sleep"), "--only", "sleep", "reading")


def test_the_plain_autoencoder_is_ours_but_for_its_quantiser():
    config = load(SMOKE)
    network = plain.plain_vae(config).eval()
    made, indices, commitment = network(torch.zeros(2, 3, 64, 64))
    assert (made.shape, indices.shape, commitment.numel()) == ((2, 3, 64, 64), (2, 8, 8), 1)


@pytest.mark.skipif(not peers.available("diffusers"), reason="diffusers is an extra")
def test_the_peer_s_network_has_our_size():
    from stages.ldm import build_unet

    config = load("configs/demo.yaml", ["ldm.network.expansion=4"])
    with torch.device("meta"):
        ours, theirs = build_unet(config.ldm, 6, 24, 3), peers.unet(config.ldm.network, 6)
    sizes = [sum(p.numel() for p in n.parameters()) for n in (ours, theirs)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.15)
