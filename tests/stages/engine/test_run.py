"""The loop on a task of one small network, without data: what a resumed or finished run keeps."""

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from stages.engine.errors import Interrupted, UserError
from stages.engine.export import read_about
from stages.engine.optim import Optimizer
from stages.engine.run import Run, move_aside
from tests.helpers import digest, interrupted_at, lines
from tests.stages.handful import context_with


class Small:
    """A task whose network draws dropout from torch's own generator."""

    def __init__(self, settings):
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.optimizers = [Optimizer(self.network, settings)]
        self.parts = {"network": self.network, "optimizer": self.optimizers[0]}

    def step(self, step, draws):
        loss = self.network(draws.normal(4)).square().mean()
        return {"loss": loss.detach(), "gradient_norm": self.optimizers[0].update(loss, step)}

    def preview(self, step):
        torch.rand(3)
        return {}, {}

    def export(self):
        return dict(self.network.state_dict()), {}


def context_of(root, name, began=0.0):
    """Returns the context of a run that began so many seconds ago."""
    return replace(context_with(f"root={root}", f"name={name}"), began=time.perf_counter() - began)


def trained(context):
    with context.held:
        run = Run(context, "ldm", {"data": "d"})
        run.train(Small(run.settings))
    return run.folder


def interrupted(context, step, monkeypatch):
    with interrupted_at(step, monkeypatch), pytest.raises(Interrupted):
        trained(context)


@pytest.mark.parametrize("step", range(5))
def test_dropout_after_a_resume_is_that_of_an_uninterrupted_run(tmp_path, monkeypatch, step):
    whole = trained(context_of(tmp_path, "whole"))
    interrupted(context_of(tmp_path, "resumed"), step, monkeypatch)
    torch.rand(7 + step)  # another process begins with another state
    resumed = trained(context_of(tmp_path, "resumed"))
    assert digest(resumed) == digest(whole)
    assert lines(resumed) == lines(whole)


def test_the_seconds_of_a_run_are_those_of_all_its_commands(tmp_path, monkeypatch):
    interrupted(context_of(tmp_path, "x", began=1000), 3, monkeypatch)
    folder = trained(context_of(tmp_path, "x", began=100))
    assert 1100 < read_about(folder / "export.safetensors", "")["seconds"] < 1200


def test_only_a_finished_run_may_be_of_another_precision(tmp_path, monkeypatch):
    def other():
        return replace(context_of(tmp_path, "x"), dtype=torch.bfloat16)

    interrupted(context_of(tmp_path, "x"), 3, monkeypatch)
    with pytest.raises(UserError, match=r"another run \(precision: float32 -> bfloat16\)"):
        trained(other())
    trained(context_of(tmp_path, "x"))
    with (context := other()).held:
        assert Run(context, "ldm", {"data": "d"}).finished()


def test_an_old_run_that_is_moved_aside_replaces_no_older_one(tmp_path):
    for number in (1, 2, 3):
        (tmp_path / "ldm").mkdir()
        (tmp_path / "ldm" / str(number)).touch()
        assert move_aside(tmp_path / "ldm") == tmp_path / f"ldm.old-{number}"
    assert all((tmp_path / f"ldm.old-{number}" / str(number)).exists() for number in (1, 2, 3))
