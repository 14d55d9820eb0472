"""The written schedule, and the script that samples by it, give what models/samplers.py gives."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.diffusion import Diffusion
from models.samplers import SAMPLERS, ddim, guided
from stages.engine.schema import Eval
from stages.use.schedule import diffusers_scheduler, table

SCHEDULES = [("cosine", "v"), ("linear", "noise"), ("cosine", "noise"), ("sigmoid", "x0"), ("cosine", "mean")]


def toy(x, t, told):
    """A network's stand-in: (b, ...) arrays or tensors, t a number or per row, told a bool per row."""
    return 0.3 * x + 0.1 * t / 100 + 0.2 * told


@pytest.mark.parametrize(("schedule", "prediction"), SCHEDULES)
@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("self_condition", [False, True])
def test_the_script_samples_as_ddim_does(schedule, prediction, guidance, self_condition):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`: make setup-export")
    assert onnxruntime
    from stages.use import draw_onnx

    diffusion = Diffusion.create(schedule, 100, prediction)
    how = Eval(steps=10, guidance=guidance, interval=(0.3, 0.8))
    noise = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))

    class Network:
        estimate = torch.zeros_like(noise)

        def __call__(self, x, t, keep):
            mixed = x + 0.1 * self.estimate if self_condition else x
            found = torch.cat([toy(mixed, t, told) for told in keep])
            self.estimate = diffusion.to_x0_and_noise(found[:1], x, t)[0]
            return found

    net = Network()
    denoiser = guided(
        lambda x, t: net(x, t, [True]),
        lambda x, t: net(x, t, [False]),
        lambda x, t: net(x, t, [True, False]),
        guidance,
        100,
        how.interval,
    )
    times = SAMPLERS["ddim"].times(diffusion, 10, "trailing")
    *_, (_, expected, _) = ddim(denoiser, diffusion, noise, times)

    def run(file, x, t=None, keep=None, estimate=None, **others):
        if file == "decoder":
            return x
        assert t.dtype == np.int64 and len(x) == len(t) == len(keep)
        mixed = x + np.float32(0.1) * estimate if self_condition else x
        return toy(mixed, t[:, None, None, None].astype(np.float32), keep[:, None, None, None]).astype(np.float32)

    model = {"denoiser": "denoiser", "decoder": "decoder", **table(diffusion, how)}
    assert model["times"] == times
    objects, places = np.zeros((1, 1), np.int64), np.zeros((1, 1, 2), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw_onnx, "run", run)
        found = draw_onnx.draw(model, noise.numpy(), objects=objects, places=places)
    assert found.dtype == np.float32
    scale = expected.abs().max().item()
    np.testing.assert_allclose(found, expected, atol=1e-3 * scale)


@pytest.mark.parametrize(("schedule", "prediction"), [("cosine", "v"), ("beta-cosine", "noise"), ("sigmoid", "x0")])
def test_diffusers_scheduler_samples_as_ddim_does(schedule, prediction):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is of the extra `bench`")
    diffusion, how = Diffusion.create(schedule, 100, prediction), Eval(steps=10)
    scheduler = diffusers.DDIMScheduler.from_config(diffusers_scheduler(diffusion, how))
    scheduler.set_timesteps(10)
    times = SAMPLERS["ddim"].times(diffusion, 10, "trailing")
    assert scheduler.timesteps.tolist() == times
    noise = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    *_, (_, expected, _) = ddim(lambda x, t: toy(x, t, True), diffusion, noise, times)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(toy(x, t, True), t, x).prev_sample
    torch.testing.assert_close(x, expected, atol=2e-3 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize(
    ("schedule", "prediction", "spacing"),
    [("cosine", "mean", "trailing"), ("cosine", "noise", "trailing"), ("cosine", "v", "uniform")],
)
def test_what_diffusers_scheduler_would_sample_otherwise_is_not_written(schedule, prediction, spacing):
    assert diffusers_scheduler(Diffusion.create(schedule, 100, prediction), Eval(spacing=spacing)) is None


def test_objects_without_a_place_get_one_of_training():
    pytest.importorskip("onnxruntime", reason="needs the extra `export`: make setup-export")
    from stages.use.draw_onnx import completed

    layouts = {"2": np.float32([[[0.1, 0.1], [0.9, 0.9]], [[0.4, 0.4], [0.2, 0.2]]])}
    found = completed([None, None], layouts, SimpleNamespace(choice=lambda values: values[1]))
    assert found.tolist() == layouts["2"][1].tolist()
    found = completed([(0.25, 0.25), None], layouts, None)  # beside it, the place far from it
    assert found.tolist() == [[0.25, 0.25], pytest.approx([0.9, 0.9])]


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_the_steps_follow_from_the_other_keys(guidance):
    """What docs/exports.md says, so that a program may sample with other numbers of steps."""
    how = Eval(steps=7, guidance=guidance, interval=(0.3, 0.8))
    found = table(Diffusion.create("cosine", 100, "v"), how)
    after = [found["alpha_bar"][t] for t in found["times"][1:]] + [1.0]
    seen = set()
    for t, abar, step in zip(found["times"], after, found["steps"], strict=True):
        a, b, c, d = found["factors"][t]
        picture, noise = abar**0.5, (1 - abar) ** 0.5
        inside = found["interval"][0] <= (t + 1) / found["timesteps"] <= found["interval"][1]
        seen |= {inside}
        scale = found["guidance"] if inside or found["guidance"] == 0 else 1.0
        assert step == pytest.approx([t, scale, picture * a + noise * c, picture * b + noise * d, a, b])
    assert seen == {True, False}
