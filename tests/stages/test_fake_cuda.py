"""One step of every task and one call of every sampler on a GPU that is not there: `tests/fake_cuda.py`.

No operation mixes devices or types, and the host waits for the device as rarely as it is said here.
"""

import argparse
import time
from concurrent.futures import Future
from contextlib import ExitStack
from copy import deepcopy

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from data.labels import Vocabulary
from models.blocks import GroupNorm, LayerNorm
from models.condition import Condition
from models.evaluator import Evaluator
from models.layouts import LayoutPrior
from models.perceptual import Perceptual
from models.samplers import sampling_timesteps
from stages.ddpm import DdpmTask
from stages.engine.command import Context
from stages.engine.config import load
from stages.engine.dataset import Dataset
from stages.engine.draws import Draws
from stages.engine.log import MetricsLog
from stages.engine.optim import Witness
from stages.engine.trained import CAST, held_in
from stages.evaluator import EvaluatorTask
from stages.gan import GanSampler, GanTask
from stages.ldm import ldm_task
from stages.onestep import OnestepTask, Pairs
from stages.reader import ReaderTask
from stages.vae import VaeTask, build_vae
from tests.conftest import HERE, SMOKE
from tests.fake_cuda import CUDA, fake_cuda

ON_DISK = False  # whether training pictures and latents are on the host
LISTS = [[0, 5], [1], [2, 3, 23], [7]] * 10
PLACES = [[(0.2 + 0.25 * i, 0.5) for i, _ in enumerate(row)] for row in LISTS]
NAMES = [f"{colour} {shape}" for colour in "abcdefgh" for shape in ("cube", "sphere", "cylinder")]


@pytest.fixture(scope="module")
def machine():
    """The fake GPU; the evaluator has weights of random numbers, and layouts are those of real conditions."""
    layouts = LayoutPrior.of(conditions())
    with pytest.MonkeyPatch.context() as patch, fake_cuda() as machine:
        patch.setattr(LayoutPrior, "of", lambda *unused: layouts)
        judge = Evaluator(24).to(CUDA).eval().requires_grad_(False)
        about = {"kind": "trained", "sha256": "0" * 64}
        for stage in ("vae", "ldm", "gan", "ddpm", "onestep", "judge"):
            patch.setattr(f"stages.{stage}.load_evaluator", lambda *unused: (judge, about))
        yield machine


def conditions():
    known = Condition.of_lists(LISTS, 24, PLACES)
    return known.with_turns(torch.where(known.present, 0.25, -1.0))


def context_of(*overrides):
    config = load(str(HERE / SMOKE), ["precision=bfloat16", *overrides])
    return Context(config, CUDA, torch.bfloat16, argparse.Namespace(config=SMOKE), time.perf_counter(), ExitStack())


def dataset():
    images = torch.zeros(len(LISTS), 3, 64, 64, dtype=torch.uint8)
    on_device = conditions().to(CUDA)
    made = Dataset(
        images if ON_DISK else images.to(CUDA),
        on_device,
        images[:8].to(CUDA),
        on_device[:8],
        {},
        Vocabulary(NAMES),
        "0" * 64,
        "1" * 64,
        "2" * 64,
        "",
        HERE,
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


def untrained_vae(context):
    return context.on_device(build_vae(context.config.vae)).eval().requires_grad_(False)


def task_of(stage, *overrides):
    """Returns a stage's task and its configuration."""
    context, pictures = context_of(*overrides), dataset()
    tasks = {"vae": VaeTask, "evaluator": EvaluatorTask, "reader": ReaderTask, "ddpm": DdpmTask}
    if stage in tasks:
        return tasks[stage](context, pictures), context.config
    if stage == "gan":
        vae = untrained_vae(context) if context.config.gan.space == "latents" else None
        return GanTask(context, pictures, vae), context.config
    latents = torch.zeros(len(LISTS), context.config.vae.latent_channels, 8, 8, device="cpu" if ON_DISK else CUDA)
    task = ldm_task(context, pictures, untrained_vae(context), latents)
    if stage == "onestep":
        about = {"config": context.config.ldm.model_dump(mode="json"), **task.facts}
        teacher = task.sampler_of(task.ema.average, task.layouts)
        pairs = Pairs(latents, latents, pictures.conditions)
        return OnestepTask(context, pictures, teacher, about, pairs), context.config
    return task, context.config


ON_LATENTS = ["gan.space=latents", "gan.stem=1", "gan.generator.channels=[16,8]", "gan.critic.channels=[8,16]"]
ON_MAP = ["gan.generator.entry=map", "gan.generator.condition=modulation", "gan.generator.channels=[16]"]
AT_PLACES = ["gan.critic.read=places", "gan.critic.pool=sum", "gan.critic.channels=[16]"]
TOLD = ["ldm.network.order=true", "ldm.network.places=true", "ldm.network.pooled=true", "ldm.picture_draws=by-labels"]
TOLD += ["ldm.network.turns=true", "ldm.timestep_draws=weighted", "ldm.log_snr=[0.0,2.0]"]
BY_LABELS = ["gan.picture_draws=by-labels", "gan.critic.condition=auxiliary"]
RISING = ["gan.critic.condition=auxiliary", "gan.auxiliary_schedule=rising", "gan.generator.condition=modulation"]
VAE_LOSSES = ["vae.cell_weight=0.1", "vae.windows_until=6", "vae.unquantized=0.5", "vae.decoder_noise=0.1"]


@pytest.mark.parametrize(
    ("stage", "steps", "overrides"),
    [
        pytest.param("vae", (0, 1), [], id="vae before its codebook starts"),
        pytest.param("vae", (3, 4), [], id="vae with codes and a discriminator"),
        pytest.param("vae", (3, 4), ["vae.discriminator.adaptive=false"], id="vae with a constant weight"),
        pytest.param("vae", (3, 4), ["vae.discriminator.weight=0", "vae.codebook.rotation_trick=true"], id="vae alone"),
        pytest.param("vae", (0,), ["vae.codebook.init=uniform", "vae.codebook.start=0"], id="vae from random codes"),
        pytest.param(
            "vae",
            (0,),
            ["vae.quantizer=fsq", "vae.label_weight=0", *VAE_LOSSES],
            id="vae with finite scalars and more losses",
        ),
        pytest.param("vae", (0, 1), ["vae.quantizer=residual", "vae.residual.codes=8"], id="vae with residual codes"),
        pytest.param("evaluator", (0,), ["evaluator.cell_weight=0.1"], id="evaluator"),
        pytest.param("reader", (0,), [], id="reader"),
        pytest.param("ldm", (0, 5), [], id="ldm, its second epoch too"),
        pytest.param(
            "ldm", (0,), ["ldm.network.self_condition=true", "ldm.network.dropout=0.1"], id="self-conditioned"
        ),
        pytest.param("ldm", (0,), ["ldm.optimizer=muon", "ldm.clip=1.0"], id="muon"),
        pytest.param("ldm", (0,), ["ldm.prediction=mean", "ldm.bound=true"], id="the posterior's mean"),
        pytest.param("gan", (0,), [], id="gan on pixels"),
        pytest.param("gan", (0,), [*ON_LATENTS, "gan.layer_norms=true"], id="gan on latents"),
        pytest.param("gan", (0,), ["gan.loss=wgan", "gan.attention=true"], id="gan with clipped weights"),
        pytest.param("gan", (0,), ["gan.loss=r3gan", "gan.generator.condition=batch-norm"], id="gan of pairs"),
        pytest.param("gan", (0,), [*ON_LATENTS, *ON_MAP, *AT_PLACES], id="gan on a map of places"),
        pytest.param("ddpm", (0,), [], id="ddpm"),
        pytest.param("onestep", (0, 10), [], id="onestep, its second epoch too"),
        pytest.param(
            "onestep",
            (0,),
            ["onestep.critic.weight=0.0", "onestep.distance=huber", "ldm.network.self_condition=true"],
            id="onestep without a critic",
        ),
        pytest.param("ddpm", (0,), ["ddpm.network=patches", "ddpm.unet.channels=32"], id="ddpm on patches"),
        pytest.param("ldm", (0, 5), TOLD, id="ldm that is told order and places, by weighted draws"),
        pytest.param("ddpm", (0,), ["ddpm.places=true", "ddpm.paths=up"], id="ddpm with places"),
        pytest.param("gan", (0,), ["gan.loss=hinge", *BY_LABELS, "gan.body=dcgan"], id="gan with a hinge, by labels"),
        pytest.param(
            "gan", (0,), ["gan.loss=lsgan", "gan.critic.condition=concatenation"], id="gan of least squares, on a map"
        ),
        pytest.param("gan", (0,), ["gan.loss=non-saturating", *RISING], id="gan with logits, its label loss rising"),
        pytest.param("gan", (0,), ["gan.penalty_share=0.5", "gan.accumulate=2"], id="gan in parts"),
        pytest.param("gan", (0,), [*ON_LATENTS, *ON_MAP, *AT_PLACES, "gan.accumulate=2"], id="gan on a map in parts"),
        pytest.param("vae", (3, 4), ["vae.accumulate=2", "vae.edges=0.5"], id="vae in parts, with edges"),
        pytest.param(
            "evaluator", (0,), ["evaluator.accumulate=2", "evaluator.cell_weight=0.1"], id="evaluator in parts"
        ),
        pytest.param("reader", (0,), ["reader.accumulate=2"], id="reader in parts"),
        pytest.param("ldm", (0,), ["ldm.accumulate=2", "ldm.network.self_condition=true"], id="ldm in parts"),
        pytest.param("ddpm", (0,), ["ddpm.accumulate=2"], id="ddpm in parts"),
        pytest.param("onestep", (0,), ["onestep.accumulate=2", *TOLD], id="onestep in parts, of a teacher with places"),
    ],
)
def test_a_step_does_not_wait(machine, stage, steps, overrides):
    task, config = task_of(stage, *overrides)
    assert waits_of_steps(machine, task, getattr(config, stage), *steps) == []


class AtOnce:
    """Stands for a thread: it does what it is given at once, for a thread would not see the fake GPU."""

    def __init__(self, *unused, **options):
        pass

    def submit(self, function, *arguments):
        done = Future()
        done.set_result(function(*arguments))
        return done


@pytest.mark.parametrize("stage", ["vae", "evaluator", "reader", "gan", "ddpm", "ldm"])
def test_pictures_or_latents_that_stay_on_the_disk_are_not_waited_for(machine, monkeypatch, stage):
    """They come from pinned memory, and which ones is known on the host."""
    monkeypatch.setattr("stages.engine.ahead.ThreadPoolExecutor", AtOnce)
    monkeypatch.setattr("tests.stages.test_fake_cuda.ON_DISK", True)
    task, config = task_of(stage)
    waits_of_steps(machine, task, getattr(config, stage), 1)  # the reader's own list of pictures comes to the host once
    before = machine.sent
    assert waits_of_steps(machine, task, getattr(config, stage), 2) == []
    assert machine.sent > before, "nothing came from the host"


def test_only_the_start_of_a_codebook_waits(machine):
    task, config = task_of("vae")
    machine.says = False  # the codes have not started
    try:
        assert len(waits_of_steps(machine, task, config.vae, 3)) == 3
    finally:
        machine.says = True


@pytest.mark.parametrize(
    "overrides",
    [
        ["eval.interval=[0.2,0.8]"],
        ["eval.eta=1.0", "ldm.network.self_condition=true"],
        ["eval.sampler=dpm-solver++"],
        ["eval.sampler=ancestral", "ldm.timesteps=4", "eval.clip=3.0", "ldm.prediction=mean"],
        *(
            [
                f"eval.sampler={sampler}",
                "ldm.timesteps=2",
                "eval.steps=2",
                "eval.classifier_guidance=1.0",
                "uses.guide=other",
            ]
            for sampler in ("ddim", "dpm-solver++", "ancestral")
        ),
    ],
    ids=" ".join,
)
def test_a_sampling_does_not_wait(machine, overrides):
    task, config = task_of("ldm", *overrides)
    assert waits_of_sampling(machine, task.sampler_of(task.ema.average, task.layouts), config) == []


@pytest.mark.parametrize(
    "overrides",
    [
        TOLD,
        ["ddpm.places=true", "eval.sampler=ancestral", "eval.clip=1.0"],
        ["ddpm.network=patches", "ddpm.unet.channels=32", "ddpm.unet.self_condition=true", "eval.interval=[0.2,0.8]"],
        ["eval.classifier_guidance=1.0", "uses.guide=other", "eval.eta=0.5"],
    ],
    ids=" ".join,
)
def test_sampling_places_or_pixels_does_not_wait(machine, overrides):
    task, config = task_of("ldm" if overrides is TOLD else "ddpm", *overrides)
    assert waits_of_sampling(machine, task.sampler_of(task.ema.average, task.layouts), config) == []


@pytest.mark.parametrize("overrides", [[], ON_LATENTS, [*ON_LATENTS, *ON_MAP]], ids=["pixels", "latents", "map"])
def test_the_gans_sampling_does_not_wait(machine, overrides):
    task, config = task_of("gan", *overrides)
    sampler = GanSampler(task.context, task.ema.average, task.settings, task.vae, task.layouts)
    assert waits_of_sampling(machine, sampler, config) == []


def test_the_sampling_in_one_step_does_not_wait(machine):
    task, config = task_of("onestep")
    assert waits_of_sampling(machine, task.sampler(), config) == []


def waits_of_sampling(machine, sampler, config):
    """Draws one batch of pictures and returns what the host waited for."""
    asked = conditions()[:6]
    machine.waits.clear()
    made = sampler.sample(asked, [(0, "test", i) for i in range(len(asked))], config.eval)
    assert (made.shape, made.device, made.dtype) == ((6, 3, 64, 64), CUDA, torch.float32)
    return machine.waits


def test_a_frozen_network_casts_no_weights_and_norms_return_the_type_of_the_map(machine):
    """Autocast would cast each weight at each call, and would compute norms and what follows them in float32."""
    task, config = task_of("ldm")
    layers = sum(isinstance(module, CAST) for module in task.network.modules())
    calls = []
    for network in (task.ema.average, held_in(deepcopy(task.ema.average), torch.bfloat16)):
        machine.calls.clear()
        waits_of_sampling(machine, task.sampler_of(network, task.layouts), config)
        calls.append(machine.calls[torch.ops.aten._to_copy.default])
    steps = len(sampling_timesteps(task.diffusion, config.eval.steps))
    assert calls[0] - calls[1] > steps * layers
    with task.context.autocast():
        for norm, shape in ((GroupNorm(2, 8), (2, 8, 4, 4)), (LayerNorm(8), (2, 4, 8))):
            assert norm.to(CUDA)(torch.zeros(shape, device=CUDA, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("sampler", ["ddim", "dpm-solver++", "ancestral"])
def test_classifier_guidance_evaluates_the_network_once_a_step(machine, sampler):
    guided = ["eval.classifier_guidance=1.0", "uses.guide=other", "eval.guidance=2.0"]
    task, config = task_of("ldm", f"eval.sampler={sampler}", "ldm.timesteps=3", "eval.steps=3", *guided)
    counted = []
    hook = task.ema.average.register_forward_hook(lambda *unused: counted.append(1))
    waits_of_sampling(machine, task.sampler_of(task.ema.average, task.layouts), config)
    hook.remove()
    assert len(counted) == 3


def test_metrics_are_noted_and_summed_as_vectors(machine):
    """A dozen kernels whatever the number of metrics, where each had some of its own."""
    task, _ = task_of("ldm")
    log, witness = MetricsLog(HERE, 1000, 10, 8, "test"), Witness(task.optimizers)
    metrics = {f"metric {i}": torch.zeros((), device=CUDA) for i in range(20)}
    metrics |= {f"part {i}": (torch.zeros((), device=CUDA), torch.ones((), device=CUDA)) for i in range(20)}
    for _ in range(2):
        machine.calls.clear()
        witness.note(metrics)
        log.add(metrics)
    assert sum(machine.calls.values()) <= 12


def test_the_perceptual_loss_works_in_bfloat16_and_is_measured_in_float32(machine, monkeypatch):
    def random(settings, context):
        with _disable_current_modes():  # torch.load would make fake tensors of lpips' own weights
            return Perceptual("alex", dtype=context.dtype)

    monkeypatch.setattr("stages.vae.load_perceptual", random)
    task, config = task_of("vae", "vae.perceptual={weight: 1.0, network: alex}")
    assert waits_of_steps(machine, task, config.vae, 3, 4) == []
    pictures = torch.zeros(2, 3, 64, 64, device=CUDA)
    machine.types.clear()
    assert task.perceptual(pictures, pictures).dtype == torch.float32
    assert machine.types[torch.ops.aten.convolution.default] == {torch.bfloat16, torch.float32}
