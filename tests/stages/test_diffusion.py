"""Self-conditioning in training and sampling, with networks that record their inputs; classifier guidance with a
linear guide."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import stages.diffusion
from models.condition import Condition
from models.diffusion import Diffusion
from models.evaluator import Evaluator
from models.layouts import LayoutPrior
from models.samplers import SAMPLERS, sampling_timesteps
from stages.ddpm import DdpmTask
from stages.diffusion import DiffusionSampler, denoising_errors
from stages.engine.command import Context
from stages.engine.config import load
from stages.engine.draws import Draws
from stages.engine.optim import Optimizer
from stages.judge import guide_of
from stages.ldm import ldm_task
from stages.vae import build_vae
from tests.conftest import SMOKE
from tests.stages.handful import context_with, noise_pictures

DEVICE = torch.device("cpu")
NOTHING = Condition.of_lists([[]], 24)


class Witness(nn.Module):
    """Predicts x_0 as a number that grows with each call, and remembers the estimates it was given."""

    self_condition = True

    def __init__(self):
        super().__init__()
        self.estimates = []

    def forward(self, x, t, condition, keep=None, estimate=None):
        self.estimates.append(None if estimate is None else estimate.clone())
        return torch.full_like(x, float(len(self.estimates)))


def context():
    config = load(SMOKE, ["ldm.prediction=x0", "eval.guidance=2"])
    return Context(config, DEVICE, torch.float32, None, 0.0, None)


def test_half_of_the_rows_are_trained_with_an_estimate():
    network, diffusion = Witness(), Diffusion.create("cosine", 100, "x0", DEVICE)
    x0, t, nothing = torch.zeros(4, 6, 8, 8), torch.tensor([10, 30, 60, 90]), NOTHING.repeat(4)
    denoising_errors(context(), network, diffusion, x0, torch.randn_like(x0), t, nothing)
    assert network.estimates[0] is None
    means = network.estimates[1].mean(dim=(1, 2, 3))
    assert means.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_each_step_of_sampling_is_given_the_x0_of_the_step_before():
    c, network = context(), Witness()
    sampler = DiffusionSampler(c, "ldm", network, c.config.ldm, (6, 8, 8), lambda x: x, LayoutPrior())
    how = c.config.eval.model_copy(update={"steps": 4, "batch": 2})
    for _ in range(2):  # a second sampling starts without one
        network.estimates.clear()
        sampler.sample(NOTHING.repeat(2), [(0, i) for i in range(2)], how)
        assert len(network.estimates) == len(sampling_timesteps(sampler.diffusion, 4))
        assert network.estimates[0] is None
        for number, estimate in enumerate(network.estimates[1:], 1):
            assert estimate.shape == (4, 6, 8, 8)  # conditional and unconditional rows
            assert (estimate == number).all()


class Half(nn.Module):
    """Predicts that x_0 is half of x_t."""

    def forward(self, x, t, condition, keep=None):
        return x / 2


class Guide(nn.Module):
    """Logits that are linear in the picture."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(3 * 4 * 4, 5, generator=torch.Generator().manual_seed(1)) / 4

    def logits(self, images):
        return images.flatten(1) @ self.weight


SCALE = 0.5
LABELS = torch.tensor([[1.0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 1, 0, 1]])


def likelihood(guide, images):
    """Returns log p(labels | picture) (b,), with objects independent of each other."""
    return torch.distributions.Bernoulli(logits=guide.logits(images)).log_prob(LABELS).sum(1)


@pytest.fixture
def guided_sampler(monkeypatch):
    """Returns a guide, a sampler guided by it of pictures (3, 4, 4) that are not decoded, and its settings."""
    guide = Guide()
    monkeypatch.setattr("stages.judge.load_evaluator", lambda context, classes, role: (guide, {}))
    changes = ["ldm.prediction=x0", "ldm.schedule=beta-cosine", "ldm.timesteps=12", "uses.guide=other"]
    config = load(SMOKE, [*changes, f"eval.classifier_guidance={SCALE}", "eval.guidance=1"])
    c = Context(config, DEVICE, torch.float32, None, 0.0, None)
    sampler = DiffusionSampler(c, "ldm", Half(), config.ldm, (3, 4, 4), lambda x: x, LayoutPrior(), guide_of(c, 5))
    return guide, sampler, config.eval


def test_the_guide_s_gradient_by_hand_and_a_step_along_it_raises_the_likelihood(guided_sampler):
    """The gradient of log p(labels | x / 2) is (labels - probabilities) W' / 2, over a picture's labels together."""
    guide, sampler, how = guided_sampler
    x, t = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)), 5
    _, score = sampler._denoiser_and_score(Condition.of_labels(LABELS), how)[1](x, t)
    errors = LABELS - guide.logits(x / 2).sigmoid()
    torch.testing.assert_close(score, SCALE / 2 * (errors @ guide.weight.T).view_as(x))
    assert (likelihood(guide, (x + 0.1 * score) / 2) > likelihood(guide, x / 2)).all()


@pytest.mark.parametrize("name", ["ddim", "dpm-solver++", "ancestral"])
@torch.no_grad()
def test_a_guided_step_of_each_sampler_raises_the_likelihood(guided_sampler, name):
    """Compares with the same step without the guide, from the same noise."""
    guide, sampler, how = guided_sampler
    how, after = how.model_copy(update={"sampler": name, "steps": 3}), {}
    for scale in (0.0, SCALE):
        generator = torch.Generator().manual_seed(0)
        steps = sampler._steps(
            Condition.of_labels(LABELS),
            how.model_copy(update={"classifier_guidance": scale}),
            lambda generator=generator: torch.randn(3, 3, 4, 4, generator=generator),
        )
        _, after[scale], _ = next(steps)
    assert (likelihood(guide, after[SCALE] / 2) > likelihood(guide, after[0.0] / 2)).all()


@pytest.mark.parametrize("name", ["ddim", "dpm-solver++", "ancestral"])
@torch.no_grad()
def test_one_evaluation_serves_prediction_and_gradient_with_the_bits_of_two(guided_sampler, name):
    _, sampler, how = guided_sampler
    how = how.model_copy(update={"sampler": name, "steps": 3})
    condition, found = Condition.of_labels(LABELS), []
    denoiser, score = sampler._denoiser_and_score(condition, how)

    def twice(x, t):
        return denoiser(x, t), score(x, t)[1]

    solver = SAMPLERS[name]
    times = solver.times(sampler.diffusion, how.steps, how.spacing)
    for pull in (score, twice):
        generator = torch.Generator().manual_seed(0)

        def draw(generator=generator):
            return torch.randn(3, 3, 4, 4, generator=generator)

        options = {"score": pull} | ({"draw_noise": draw} if name == "ancestral" else {})
        *_, (_, last, _) = solver.solve(denoiser, sampler.diffusion, draw(), times, **options)
        found.append(last)
    assert torch.equal(*found)


@pytest.fixture
def judged(monkeypatch):
    """Tasks get an untrained judge."""
    judge = (Evaluator(3).eval().requires_grad_(False), {})
    for module in ("ldm", "ddpm"):
        monkeypatch.setattr(f"stages.{module}.load_evaluator", lambda *unused: judge)


def task_of(stage, context, dataset):
    if stage == "ddpm":
        return DdpmTask(context, dataset)
    vae = build_vae(context.config.vae).eval().requires_grad_(False)
    return ldm_task(context, dataset, vae, torch.randn(8, vae.latent_mean.numel(), 8, 8))


@pytest.mark.parametrize("draws", ["uniform", "by-labels"])
@pytest.mark.parametrize("stage", ["ldm", "ddpm"])
def test_training_draws_only_pictures_whose_objects_are_apart(judged, tmp_path, stage, draws):
    near, far = [(0.5, 0.5), (0.5, 0.6)], [(0.5, 0.5), (0.5, 0.9)]
    conditions = Condition.of_lists([[0, 1]] * 8, 3, [near, far] * 4)
    dataset = replace(noise_pictures(tmp_path), conditions=conditions, places_sha256="some")
    for apart, expected in ((0.0, [*range(8)]), (0.2, [1, 3, 5, 7])):
        asked = (f"{stage}.apart={apart}", "ldm.network.places=false", f"{stage}.picture_draws={draws}")
        rows = task_of(stage, context_with(*asked), dataset).rows
        assert rows[torch.arange(len(rows))].unique().tolist() == expected


@pytest.mark.parametrize("stage", ["ldm", "ddpm"])
def test_every_weight_gets_a_gradient_under_autocast(judged, monkeypatch, tmp_path, stage):
    """Self-conditioning calls the network without a gradient first; a cast kept from there would have none."""
    told = ["network.self_condition=true", "network.dropout=0.1", "network.order=true", "network.pooled=true"]
    of = {"ldm": told, "ddpm": ["network=patches", "unet.channels=16", "unet.self_condition=true"]}[stage]
    made = context_with("precision=bfloat16", *(f"{stage}.{change}" for change in of))
    made, dataset = replace(made, dtype=torch.bfloat16), noise_pictures(tmp_path)
    task = task_of(stage, made, dataset)
    without, take = [], Optimizer.take

    def looked_at(self, step):
        without.extend(name for name, parameter in self.named if parameter.grad is None)
        return take(self, step)

    monkeypatch.setattr(Optimizer, "take", looked_at)
    task.step(0, Draws(0, "test", 0, 8, DEVICE))
    assert without == []


@pytest.fixture
def trained_on(monkeypatch):
    """What the steps of tasks are trained on: (t, condition, keep, errors) of each batch, and the losses."""
    seen, losses, errors_of, add = [], [], stages.diffusion.denoising_errors, Optimizer.add

    def errors(context, network, diffusion, x0, noise, t, condition, keep, first):
        found = errors_of(context, network, diffusion, x0, noise, t, condition, keep, first)
        seen.append((t, condition, keep, found.detach()))
        return found

    def added(self, loss, *parts, **more):
        losses.append(loss.item())
        return add(self, loss, *parts, **more)

    monkeypatch.setattr(stages.diffusion, "denoising_errors", errors)
    monkeypatch.setattr(Optimizer, "add", added)
    return seen, losses


def placed(dataset):
    places = torch.rand(8, 1, 2, generator=torch.Generator().manual_seed(0))
    return replace(dataset, conditions=dataset.conditions.with_places(places), places_sha256="some")


def test_the_shares_of_conditions_and_of_places_that_are_dropped(judged, trained_on, tmp_path):
    changes = ("ldm.batch=128", "ldm.label_dropout=0.1", "ldm.place_dropout=0.3")
    task = task_of("ldm", context_with(*changes), placed(noise_pictures(tmp_path)))
    for step in range(4):
        task.step(step, Draws(0, "ldm", step, 128, DEVICE))
    keep = torch.cat([keep for _, _, keep, _ in trained_on[0]])
    told = torch.cat([condition.placed[:, 0] for _, condition, _, _ in trained_on[0]])
    assert keep.float().mean().item() == pytest.approx(0.9, abs=0.04)
    assert told.float().mean().item() == pytest.approx(0.7, abs=0.06)
    assert told[~keep].any() and not told[keep].all(), "one apart from the other"


@pytest.mark.parametrize("drawn", ["uniform", "weighted"])
def test_an_error_has_its_timestep_s_weight_once(judged, trained_on, tmp_path, drawn):
    """Timesteps that are drawn by their weights have one weight, the mean of all."""
    changes = ("ldm.batch=64", f"ldm.timestep_draws={drawn}", "ldm.log_snr=null", "ldm.min_snr=5.0")
    task = task_of("ldm", context_with(*changes), noise_pictures(tmp_path))
    metrics = task.step(0, Draws(0, "ldm", 0, 64, DEVICE))
    ((t, _, _, errors),), (loss,) = trained_on
    of_each = task.weights[t] if drawn == "uniform" else task.weights.mean().expand(64)
    assert task.weights.std() > 0.1 and loss == pytest.approx((of_each * errors).mean().item(), rel=1e-5)
    assert metrics["loss"].item() == pytest.approx(loss, rel=1e-5)
    share = task.weights[t].mean() / task.weights.mean()
    assert (share > 1.2) == (drawn == "weighted"), "heavy timesteps are drawn more often, or not"
    sums, counts = zip(*(metrics[f"error_q{q}"] for q in (1, 2, 3, 4)), strict=True)
    for quarter in range(4):
        own = (t >= 25 * quarter) & (t < 25 * quarter + 25)
        assert counts[quarter] == own.sum()
        assert sums[quarter].item() == pytest.approx(errors[own].sum().item(), rel=1e-4)
