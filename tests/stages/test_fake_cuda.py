"""One step of every task and one call of every sampler on a GPU that is not there: `tests/fake_cuda.py`.

No operation mixes devices or types, and the host waits for the device as rarely as it is said here.
"""

import argparse
import time
from contextlib import ExitStack

import pytest
import torch

from data.labels import Vocabulary
from models.condition import Condition
from models.evaluator import Evaluator
from models.layouts import LayoutPrior
from stages.engine.command import Context
from stages.engine.config import load
from stages.engine.dataset import Dataset
from stages.engine.draws import Draws
from stages.engine.log import MetricsLog
from stages.engine.optim import Witness
from stages.ldm import ldm_task
from stages.vae import build_vae
from tests.conftest import HERE, SMOKE
from tests.fake_cuda import CUDA, fake_cuda

LISTS = [[0, 5], [1], [2, 3, 23], [7]] * 10
PLACES = [[(0.2 + 0.25 * i, 0.5) for i, _ in enumerate(row)] for row in LISTS]
NAMES = [f"{colour} {shape}" for colour in "abcdefgh" for shape in ("cube", "sphere", "cylinder")]


@pytest.fixture
def machine(monkeypatch):
    """The fake GPU; the evaluator has weights of random numbers, and layouts are those of real conditions."""
    layouts = LayoutPrior.of(conditions())
    monkeypatch.setattr(LayoutPrior, "of", lambda *unused: layouts)
    with fake_cuda() as machine:
        judge = Evaluator(24).to(CUDA).eval().requires_grad_(False)
        about = {"kind": "trained", "sha256": "0" * 64}
        for stage in ("vae", "ldm", "gan", "ddpm", "judge"):
            monkeypatch.setattr(f"stages.{stage}.load_evaluator", lambda *unused: (judge, about))
        yield machine


def conditions():
    return Condition.of_lists(LISTS, 24, PLACES)


def context_of(*overrides):
    config = load(str(HERE / SMOKE), ["precision=bfloat16", *overrides])
    return Context(config, CUDA, torch.bfloat16, argparse.Namespace(config=SMOKE), time.perf_counter(), ExitStack())


def dataset():
    images = torch.zeros(len(LISTS), 3, 64, 64, dtype=torch.uint8)
    on_device = conditions().to(CUDA)
    made = Dataset(
        images.to(CUDA), on_device, images[:8].to(CUDA), on_device[:8], {}, Vocabulary(NAMES), "0" * 64, "1" * 64, HERE
    )
    made.__dict__["most_objects"] = 3  # a question to the device
    return made


def waits_of_steps(machine, task, settings, *steps):
    """Takes `steps` as the loop does and returns what the host waited for in the last one."""
    log, witness = MetricsLog(HERE, 1000, settings.steps, settings.batch, "test"), Witness(task.optimizers)
    for step in steps:
        machine.waits.clear()
        torch.manual_seed(step)
        metrics = task.step(step, Draws(0, "test", step, settings.batch, CUDA))
        witness.note(metrics)
        log.add(metrics)
    assert all(p.device == CUDA for p in task.optimizers[0].parameters)
    return machine.waits


def ldm(*overrides):
    context, pictures = context_of(*overrides), dataset()
    vae = context.on_device(build_vae(context.config.vae)).eval().requires_grad_(False)
    latents = torch.zeros(len(LISTS), context.config.vae.latent_channels, 8, 8, device=CUDA)
    return ldm_task(context, pictures, vae, latents), context.config


def waits_of_sampling(machine, task, config):
    """Draws one batch of pictures and returns what the host waited for."""
    sampler, asked = task.sampler_of(task.ema.average, task.layouts), conditions()[:6]
    machine.waits.clear()
    made = sampler.sample(asked, [(0, "test", i) for i in range(len(asked))], config.eval)
    assert (made.shape, made.device, made.dtype) == ((6, 3, 64, 64), CUDA, torch.float32)
    return machine.waits


def test_a_step_of_latent_diffusion(machine):
    task, config = ldm()
    assert len(waits_of_steps(machine, task, config.ldm, 0, 1)) == 1


def test_ddim(machine):
    task, config = ldm("eval.steps=5")
    assert len(waits_of_sampling(machine, task, config)) == 13
