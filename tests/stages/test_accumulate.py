"""A step in four parts equals the step with the whole batch, by the bounds that hold for two processes against one."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import stages.ddpm
import stages.gan
import stages.ldm
import stages.onestep
import stages.vae
from models.condition import Condition
from stages.ddpm import DdpmTask
from stages.engine.config import load
from stages.engine.draws import Draws, seed_of
from stages.engine.errors import UserError
from stages.engine.export import save_export
from stages.engine.parts import parts_of
from stages.engine.run import Run
from stages.evaluator import EvaluatorTask
from stages.gan import GanTask
from stages.ldm import ldm_task
from stages.onestep import OnestepTask, Pairs
from stages.reader import ReaderTask
from stages.vae import VaeTask
from tests.conftest import HERE, SMOKE
from tests.stages.handful import DEVICE, context_with, noise_pictures

PARTS, STEPS, BATCH = 4, 3, 8
PLACED = (
    *("gan.generator.entry=map", "gan.generator.condition=modulation", "gan.critic.read=places"),
    *("gan.critic.pool=sum", "gan.critic.condition=projection+auxiliary"),
)


@pytest.fixture
def dataset(tmp_path):
    """Sixteen noise pictures of one to three objects, whose places are known in all but every fifth."""
    few = noise_pictures(tmp_path)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (16, 3, 64, 64), dtype=torch.uint8, generator=generator)
    objects = [[i % 3, (i + 1) % 3, (i + 2) % 3][: 1 + i % 3] for i in range(16)]
    spots = torch.rand(16, 3, 2, generator=generator).tolist()
    places = [[tuple(p) if i % 5 else None for p in spots[i][: len(row)]] for i, row in enumerate(objects)]
    conditions = Condition.of_lists(objects, 3, places)
    return replace(few, images=images, conditions=conditions, places_sha256="some")


def task_of(stage, dataset, *changes):
    context = context_with(f"{stage}.batch={BATCH}", *changes)
    if stage in ("ldm", "onestep"):
        latents = torch.randn(16, 6, 8, 8, generator=torch.Generator().manual_seed(2))
        task = ldm_task(context, dataset, None, latents)
        return task if stage == "ldm" else pupil_of(task, latents)
    if stage == "gan":
        return GanTask(context, dataset, None)
    return {"evaluator": EvaluatorTask, "reader": ReaderTask, "vae": VaeTask, "ddpm": DdpmTask}[stage](context, dataset)


def pupil_of(task, latents):
    """Returns the task of distilling an untrained LDM, whose last layer is not 0."""
    context, network = task.context, task.ema.average
    torch.nn.init.normal_(network.leave[-1].weight, std=0.1, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(4))
    about = {"config": context.config.ldm.model_dump(mode="json"), **task.facts}
    teacher = task.sampler_of(network, task.layouts)
    pairs = Pairs(noise, latents, task.dataset.conditions)
    return OnestepTask(context, task.dataset, teacher, about, pairs)


def trained(stage, dataset, parts, *changes):
    """Returns each step's metrics, and every weight after the last."""
    task = task_of(stage, dataset, f"{stage}.accumulate={parts}", *changes)
    networks = {name: part for name, part in task.parts.items() if isinstance(part, nn.Module)}
    for network in networks.values():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):  # so that a row does not depend on the other rows of its part
                module.train = lambda mode=True, module=module: module
                module.training = False
    logged = []
    for step in range(STEPS):
        torch.manual_seed(seed_of(0, stage, step))
        metrics = task.step(step, Draws(0, stage, step, BATCH, DEVICE))
        logged.append({k: v[0] / v[1].clamp(min=1) if isinstance(v, tuple) else v for k, v in metrics.items()})
    weights = {f"{n}.{k}": v for n, network in networks.items() for k, v in network.state_dict().items()}
    return [{k: float(v.detach()) for k, v in line.items()} for line in logged], weights


@pytest.fixture(autouse=True)
def _no_judge(monkeypatch):
    for module in (stages.gan, stages.vae, stages.ldm, stages.ddpm, stages.onestep):
        monkeypatch.setattr(module, "load_evaluator", lambda context, classes: (None, {}))


NOISY = ("vae.decoder_noise=0.1", "vae.unquantized=0.3", "vae.cell_weight=0.3", "vae.foreground=2")
ADVERSARIAL = ("vae.discriminator.start=1", "vae.codebook.start=0", "vae.codebook.dead_below=0.5")


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("evaluator", ("evaluator.cell_weight=0.3", "evaluator.learning_rate=1e-5")),
        ("reader", ()),
        ("vae", ADVERSARIAL),
        ("vae", (*ADVERSARIAL, "vae.discriminator.adaptive=false", "vae.codebook.start=2")),
        ("vae", ("vae.quantizer=fsq", *NOISY, "vae.discriminator.start=1")),
        ("vae", ("vae.quantizer=residual", "vae.residual.codes=16", "vae.residual.dead_below=0.5", *NOISY)),
        ("vae", ("vae.quantizer=fsq", "vae.label_weight=0", "vae.windows_until=2", "vae.discriminator.weight=0")),
        ("ldm", ()),
        ("ldm", ("ldm.network.self_condition=true", "ldm.optimizer=muon", "ldm.clip=0.5")),
        ("gan", ()),
        ("gan", ("gan.loss=r3gan", "gan.critic.condition=auxiliary")),
        ("gan", ("gan.loss=wgan", "gan.generator.condition=batch-norm")),
        ("gan", PLACED),
        ("gan", ("gan.critic.condition=projection+contrast",)),
        ("ddpm", ()),
        ("onestep", ()),
        ("onestep", ("onestep.distance=huber", "onestep.critic.weight=0.0")),
        ("ddpm", ("ddpm.network=patches", "ddpm.unet.channels=16", "ddpm.unet.head_width=8", "ddpm.unet.places=true")),
    ],
)
def test_a_step_in_parts_is_the_step_with_the_whole_batch(dataset, stage, changes):
    rate = getattr(load(HERE / SMOKE, [*changes]), stage).learning_rate
    (whole, weights), (by_parts, others) = (trained(stage, dataset, parts, *changes) for parts in (1, PARTS))
    assert any(name.startswith(("loss", "reconstruction", "cells", "wasserstein", "score_gap")) for name in whole[0])
    for a, b in zip(whole, by_parts, strict=True):
        assert b == pytest.approx(a, rel=2e-3, abs=2e-4)
    for name, weight in weights.items():
        difference = (others[name].double() - weight.double()).abs()
        if name.startswith("ema."):  # of a critic's bias the gradient is 0, and rounding gives each step its sign
            assert difference.max() <= 4 * rate * max(1.0, weight.double().abs().max()), name
        if weight.is_floating_point() and weight.numel() >= 1000:
            assert difference.mean() <= 0.1 * rate, (name, difference.mean() / rate)


def test_parts_are_equal_and_cover_all_rows():
    rows = torch.arange(12)
    assert torch.equal(torch.cat([rows[part] for part in parts_of(12, 4)]), rows)
    assert [len(rows[part]) for part in parts_of(12, 4)] == [3, 3, 3, 3]
    with pytest.raises(UserError, match=r"a batch of 12 cannot .* accumulate=5 .* multiple of 5"):
        parts_of(12, 5)


@pytest.mark.parametrize("stage", ["evaluator", "reader", "vae", "ldm", "gan", "ddpm", "onestep"])
def test_a_batch_that_has_no_such_parts_is_refused(stage):
    with pytest.raises(UserError, match=rf"{stage}\.batch \(8\) must be a multiple of {stage}\.accumulate \(3\)"):
        load(HERE / SMOKE, [f"{stage}.batch=8", f"{stage}.accumulate=3"])


def test_batch_norms_see_one_part_at_a_time(dataset):
    task = task_of("reader", dataset, "reader.accumulate=4")
    (norm, *_), seen = [m for m in task.network.modules() if isinstance(m, nn.BatchNorm2d)], []
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    task.step(0, Draws(0, "reader", 0, BATCH, DEVICE))
    assert seen == [BATCH // 4] * 4 and norm.num_batches_tracked == 4


def test_a_finished_run_is_reused_with_other_parts_and_an_unfinished_one_refuses_them(tmp_path):
    """Rounding differs, so that the resumed run would not end with the bits of an uninterrupted one."""

    def run_with(parts):
        context = context_with(f"root={tmp_path}", f"ldm.accumulate={parts}")
        with context.held:
            return Run(context, "ldm", {"data": "d", "eval.apart": 0.0})

    begun, other = run_with(1), run_with(4)
    with pytest.raises(UserError, match=r"another run \(ldm\.accumulate: 1 -> 4\)"):
        other.refuse_other(begun.identity)
    new = ("ldm.accumulate", "parent eval.apart")
    before_the_key = {key: value for key, value in begun.identity.items() if key not in new}
    assert len(begun.identity) - len(before_the_key) == len(new)
    begun.refuse_other(before_the_key)
    about = {"identity": begun.identity, "steps": 6, "seconds": 1.0, "stage": "ldm"}
    save_export(other.context.export("ldm"), {"weight": torch.zeros(1)}, about)
    assert other.finished()
