"""A gradient that is not finite stops the run before it is saved; the error shows the parts of the loss."""

import shutil

import pytest
import torch

from stages.engine.export import load_export, save_export
from stages.engine.optim import Optimizer
from tests.conftest import ask_for_few
from tests.helpers import assert_one_line, digest, lines

PLANTED = 3  # the step, counted from 0: after the checkpoint of step 2
_take = Optimizer.take


def poisoned(self, step):
    """Optimizer.take, but for a gradient that is not a number in the planted step."""
    if step == PLANTED:
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.fill_(float("nan"))
    return _take(self, step)


@pytest.mark.parametrize("name", ["evaluator", "vae", "ldm", "gan", "ddpm"])
def test_a_planted_nan_is_not_saved_and_the_run_resumes_without_it(
    stage, chain, chain_copy, tmp_path, monkeypatch, name
):
    arguments, folder = (f"root={chain_copy}",), chain_copy / "smoke" / name
    if name == "ddpm":  # not part of the chain
        ask_for_few(chain_copy / "smoke/render", 2)
        arguments = (*arguments, "eval.batch=2")
        assert stage("ddpm", *arguments)[0] == 0
        chain = tmp_path / "whole"
        shutil.copytree(folder, chain / "smoke/ddpm")
    shutil.rmtree(folder)
    take = Optimizer.take
    monkeypatch.setattr(Optimizer, "take", poisoned)
    said = stage(name, *arguments)
    kept = folder / "step-00000002.ckpt"
    assert_one_line(*said, f"at step {PLANTED} (", "gradient_norm nan", f"last good checkpoint is {kept}", "--fresh")
    assert list(folder.glob("step-*.ckpt")) == [kept]
    assert not (folder / "export.safetensors").exists()
    monkeypatch.setattr(Optimizer, "take", take)
    status, said = stage(name, *arguments)
    assert (status, "continuing at step 2" in said) == (0, True), said
    assert digest(folder) == digest(chain / "smoke" / name)
    assert lines(folder) == lines(chain / "smoke" / name)


def test_where_nothing_was_logged_since_the_checkpoint_itself_refuses(stage, chain_copy, monkeypatch):
    folder = chain_copy / "smoke/ldm"
    shutil.rmtree(folder)
    monkeypatch.setattr(Optimizer, "take", poisoned)
    assert_one_line(*stage("ldm", f"root={chain_copy}", "ldm.log_every=100"), f"at step {PLANTED} (")
    assert [path.name for path in folder.glob("step-*.ckpt")] == ["step-00000002.ckpt"]


def test_out_of_memory_in_a_step_leaves_the_last_checkpoint_and_the_run_goes_on(stage, chain, chain_copy, monkeypatch):
    folder = chain_copy / "smoke/ldm"
    shutil.rmtree(folder)
    take = Optimizer.take

    def greedy(self, step):
        if step == PLANTED:
            torch.empty(1 << 55)  # 256 PiB: the allocator's own refusal
        return take(self, step)

    monkeypatch.setattr(Optimizer, "take", greedy)
    assert_one_line(*stage("ldm", f"root={chain_copy}"), "out of memory", "ldm.batch")
    assert [path.name for path in folder.glob("step-*.ckpt")] == ["step-00000002.ckpt"]
    monkeypatch.setattr(Optimizer, "take", take)
    assert stage("ldm", f"root={chain_copy}")[0] == 0
    assert digest(folder) == digest(chain / "smoke/ldm")
    assert lines(folder) == lines(chain / "smoke/ldm")


def test_a_nan_in_the_autoencoder_s_export(stage, chain_copy):
    path = chain_copy / "smoke/vae/export.safetensors"
    tensors, about = load_export(path, "")
    name = next(n for n, t in tensors.items() if "mean" in n and t.is_floating_point())
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    del about["sha256"]
    save_export(path, tensors, about)
    shutil.rmtree(chain_copy / "smoke/ldm")
    assert_one_line(*stage("ldm", f"root={chain_copy}"), "at step 0 (", "loss nan", "last good checkpoint is none yet")


def test_a_learning_rate_beyond_reason(stage, chain_copy):
    shutil.rmtree(chain_copy / "smoke/vae")
    said = stage("vae", f"root={chain_copy}", "vae.learning_rate=1e30", "vae.checkpoint_every=1")
    assert_one_line(*said, "a gradient was not finite", "vae.learning_rate")
