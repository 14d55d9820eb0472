"""The benchmark runs on the smoke configuration and compares equal work."""

import json
import math
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch

from stages.benchmark import cell, clock, peers, plain
from stages.benchmark.subject import Subject
from stages.engine.command import context_of
from stages.engine.config import load
from stages.engine.optim import Optimizer
from tests.conftest import SMOKE
from tests.helpers import assert_one_line


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    """What is measured does not depend on how many pictures the subject has."""
    monkeypatch.setattr("stages.benchmark.subject.NOISE_PICTURES", 200)


def test_its_rows_are_medians_of_calls_in_turn():
    context, calls = SimpleNamespace(device=torch.device("cpu"), arguments=SimpleNamespace(seconds=0.0)), []
    times = clock.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, context)
    assert calls == ["a", "b"] * (clock.REPEATS + 1)
    assert [len(t) for t in times.values()] == [clock.REPEATS] * 2


def test_a_time_covers_as_many_calls_as_take_long_enough(monkeypatch):
    """With a clock of its own, which a loaded machine does not delay."""
    context, calls = SimpleNamespace(device=torch.device("cpu"), arguments=SimpleNamespace(seconds=0.02)), []
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: 0.004 * len(calls)))

    def work() -> None:
        calls.append(0)

    times = clock.interleaved({"": work}, context)[""]
    assert len(calls) == 1 + 2 + 4 + 8 + 8 * clock.REPEATS  # 1, 2, 4, 8 to warm up
    assert times == pytest.approx([0.004] * clock.REPEATS)


def test_every_axis_of_growth_makes_a_step(tmp_path, monkeypatch):
    arguments, add, updates = SimpleNamespace(seconds=0.0, fresh=False), Optimizer.add, []

    def counted(self, loss, *parts, **also):
        updates.append(loss.item())
        return add(self, loss, *parts, **also)

    monkeypatch.setattr(Optimizer, "add", counted)
    with ExitStack() as held:
        context = context_of(load(SMOKE, [f"root={tmp_path}"]), arguments, 0.0, held)
        subject = Subject(context, tmp_path / "work")
        for axis, (values, step_of) in cell.AXES.items():
            before = len(updates)
            step_of(subject, min(values))()
            assert len(updates) > before and all(map(math.isfinite, updates)), axis


def test_the_page_of_a_small_bench(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "REPEATS", 1)
    only = ("--only", "vae,gan,few-steps,reading")
    status, said = stage("bench", f"root={tmp_path}", "ldm.network.channels=8", "--seconds", "0", *only)
    assert status == 0, said
    result = json.loads((tmp_path / "smoke/bench/report.json").read_text())
    assert len(result["rows"]) == 4
    table = (tmp_path / "smoke/bench/report.md").read_text()
    for row in result["rows"]:
        (ours,) = row["ours"]
        assert ours > 0
        assert row["others"]
        for name, (theirs,) in row["others"].items():
            assert name in table and f" {theirs / ours:.2f} " in table
    assert "times ours" in table


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


def test_growth_measures_steps_packs_and_labels(stage, tmp_path, monkeypatch):
    """Its packs in a process of their own, as is all it measures; its steps in this one, where torch is imported."""

    in_a_process = cell.in_a_process

    def separate(function, *arguments):
        return in_a_process(function, *arguments) if function is cell.read_pack else function(*arguments)

    monkeypatch.setattr(cell, "in_a_process", separate)
    monkeypatch.setitem(cell.AXES, "LDM: batch", ((4, 8), cell.AXES["LDM: batch"][1]))
    only = ("--only", "LDM: batch,pictures,labels", "--pictures", "640", "--labels", "5000", "--seconds", "0")
    status, said = stage("growth", f"root={tmp_path}", *only)
    assert status == 0, said
    result = json.loads((tmp_path / "smoke/growth/report.json").read_text())
    assert [row[:2] for row in result["steps"]] == [["LDM: batch", "4"], ["LDM: batch", "8"]]
    assert [row[0] for row in result["pictures"]] == ["640"]
    assert [(row[0], len(row)) for row in result["labels"]] == [("5,000", 7)], result["labels"]
    assert not [*tmp_path.rglob("pack.safetensors"), *tmp_path.rglob("*labels.safetensors*")]


@pytest.mark.faults  # it starts torchrun
def test_growth_measures_two_processes(stage, tmp_path):
    status, said = stage("growth", f"root={tmp_path}", "--only", "processes", "--seconds", "0")
    assert status == 0, said
    result = json.loads((tmp_path / "smoke/growth/report.json").read_text())
    assert [row[0] for row in result["processes"]] == ["1", "2"]


@pytest.mark.parametrize("bad", ["--pictures=many", "--pictures=3", "--labels=few", "--only=sleep", "--seconds=nan"])
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
        ours, theirs = build_unet(config.ldm, 6, 24, 3), peers.unet(config.ldm.network, 6, 8)
    sizes = [sum(p.numel() for p in n.parameters()) for n in (ours, theirs)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.15)
