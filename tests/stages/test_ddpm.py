"""Pixel diffusion's networks through the command: on patches, and with places; what cannot work gives one line."""

import numpy
import pytest
import torch
from PIL import Image

from models.condition import Condition
from models.evaluator import Evaluator
from models.layouts import LayoutPrior
from stages.ddpm import LEAST_DEVIATION, build_ddpm, load_ddpm, pixel_sampler, pixel_scale
from stages.engine.export import load_export, save_export
from stages.engine.schema import flatten
from tests.data.folder import write_folder
from tests.helpers import assert_one_line
from tests.stages.handful import context_with

UNET = "{channels: 16, multipliers: [1, 2], blocks: 1, head_width: 8, context: 16, order: true, places: true}"
PATCHES = ("ddpm.network=patches", f"ddpm.unet={UNET}", "ddpm.prediction=x0", "ddpm.log_snr=[-3.0,2.0]")
NETWORKS = {"patches": PATCHES, "places": ("ddpm.places=true",)}


def beside(tmp_path, **folder):
    """Returns the arguments of a run on a small folder, with an untrained judge."""
    save_export(tmp_path / "judge/evaluator/export.safetensors", Evaluator(24).state_dict(), {})
    data = write_folder(tmp_path / "data", **folder)
    few = ("ddpm.steps=2", "ddpm.preview_every=2", "ddpm.plateau_factor=1.0", "ddpm.batch=4", "eval.batch=2")
    return (f"root={tmp_path}", "name=pixels", f"data.folder={data}", "data.validation_every=2", *few)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_is_told_places_is_trained_and_draws(stage, tmp_path, name):
    arguments = (*beside(tmp_path), *NETWORKS[name], "uses.evaluator=judge")
    status, said = stage("ddpm", *arguments)
    assert status == 0, said
    pictures = []
    for place in ("0.3 0.3", "0.8 0.8"):
        labels = ("--labels", f"red cube at {place}, cyan sphere", "--model", "ddpm")
        status, said = stage("sample", *arguments, *labels, "--out", str(tmp_path / "x.png"))
        assert status == 0, said
        pictures.append(numpy.asarray(Image.open(tmp_path / "x.png"), dtype=float))
    assert pictures[0].std() > 1
    assert (pictures[0] != pictures[1]).any()
    tensors, about = load_export(tmp_path / "pixels/ddpm/export.safetensors", "")
    pack, _ = load_export(*tmp_path.glob("packs/*.safetensors"), "")
    assert about["parents"]["places"]
    assert {"layouts.1", "layouts.2", "layouts.3"} <= tensors.keys()
    if name == "patches":
        mean, deviation = pixel_scale(pack["images"][~pack["held_out"].bool()])
        assert torch.equal(tensors["mean"], mean)
        assert torch.equal(tensors["deviation"], deviation)


def test_a_network_that_is_told_no_places_stays_what_it_was(stage, tmp_path):
    """Its export has no map, layouts or places; an export written before these keys existed can still draw."""
    arguments = (*beside(tmp_path), "uses.evaluator=judge")
    assert stage("ddpm", *arguments)[0] == 0
    path = tmp_path / "pixels/ddpm/export.safetensors"
    tensors, about = load_export(path, "")
    assert "places" not in about["parents"]
    assert not [key for key in tensors if key.startswith(("layouts", "raster"))]
    new = ("network", "places", "bottleneck", "unet", "place_dropout", "apart")
    older = {key: value for key, value in about["config"].items() if key not in new}
    known = {key: value for key, value in about.items() if key not in ("most", "sha256")}
    identity = {k: v for k, v in about["identity"].items() if not k.startswith(tuple(f"ddpm.{key}" for key in new))}
    save_export(path, tensors, known | {"config": older, "identity": identity})
    sampler, _ = load_ddpm(context_with(*arguments))
    assert not sampler.takes_places
    status, said = stage("ddpm", *arguments)
    assert (status, "finished already" in said) == (0, True), said
    out = ("--labels", "red cube", "--model", "ddpm", "--out", str(tmp_path / "x.png"))
    assert stage("sample", *arguments, *out)[0] == 0


@pytest.mark.parametrize("models", ["models=[ddpm]", "models=[ldm]"])
@pytest.mark.parametrize("name", NETWORKS)
def test_places_that_nobody_knows_are_one_line(stage, tmp_path, name, models):
    arguments = (*beside(tmp_path, places=False), *NETWORKS[name], "uses.evaluator=judge", models)
    arguments += ("ldm.network.places=false",)
    key = "ddpm.unet.places" if name == "patches" else "ddpm.places"
    assert_one_line(*stage("ddpm", *arguments), key, "places.json", str(tmp_path / "data"))
    assert not list((tmp_path / "pixels").rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ((*PATCHES, "ddpm.places=true"), ["ddpm.places", "ddpm.unet.places=true"]),
        ((*PATCHES, "ddpm.unet.channels=15"), ["ddpm.unet.channels", "even"]),
        ((*PATCHES, "ddpm.unet.condition=vector"), ["ddpm.unet.condition"]),
        (("ddpm.network=vit",), ["ddpm.network", "multiply-add", "patches"]),
        (("ddpm.bottleneck=0",), ["ddpm.bottleneck"]),
    ],
)
def test_what_cannot_work_is_one_line(stage, tmp_path, changes, parts):
    assert_one_line(*stage("ddpm", f"root={tmp_path}", *changes), *parts)
    assert list(tmp_path.iterdir()) == []


def test_a_unet_beside_the_multiply_add_network_is_no_fault():
    context = context_with("ddpm.unet={head_width: 7}")
    assert not build_ddpm(context.config.ddpm, 24, 3, 64).places
    assert flatten(context.config.ddpm)["network"] == "multiply-add"


def test_the_scale_of_pixels():
    """The scale equals numpy's in float64; a pixel that never changes has the least deviation."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (600, 3, 8, 8), dtype=torch.uint8, generator=generator)
    images[:, :, 0, 0] = 17
    mean, deviation = pixel_scale(images)
    pictures = images.numpy().astype(numpy.float64) / 127.5 - 1
    expected = torch.from_numpy(pictures.std(axis=0)).float()
    expected[:, 0, 0] = LEAST_DEVIATION
    torch.testing.assert_close(mean, torch.from_numpy(pictures.mean(axis=0)).float())
    torch.testing.assert_close(deviation, expected)
    again = pixel_scale(images[torch.randperm(600, generator=generator)])
    assert torch.equal(mean, again[0]) and torch.equal(deviation, again[1]), "sums are exact: the order does not matter"


def test_the_row_of_patches_keeps_its_recipe_in_any_experiment(tmp_path):
    from stages.experiments.rows import changes_of, recipe_of
    from stages.experiments.systems import PATCHES as FILE
    from stages.experiments.systems import SYSTEMS

    context = context_with(f"root={tmp_path}")
    context.arguments.overrides, context.arguments.steps = ["ddpm.batch=8"], 3
    assert recipe_of(context, SYSTEMS["ddpm-patches"]) == FILE
    row = context.derived("row", *changes_of(context, "ddpm-patches")).config
    assert (row.ddpm.network, row.ddpm.prediction, row.ddpm.batch, row.ddpm.steps) == ("patches", "x0", 8, 3)
    assert row.places_of("ddpm") == {"ddpm.unet.places=true": "ddpm.unet.places=false"}
    other = context.derived("row", *changes_of(context, "ddpm-places")).config
    assert other.ddpm.network == "multiply-add"
    assert other.places_of("ddpm") == {"ddpm.places=true": "ddpm.places=false"}
    assert other.ddpm.width == context.config.ddpm.width


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_follow_the_size_of_the_pictures(name, size):
    context = context_with(*NETWORKS[name], f"data.size={size}", "eval.sampler=ddim", "eval.steps=2")
    network = build_ddpm(context.config.ddpm, 3, 3, size).eval()
    sampler = pixel_sampler(context, network, context.config.ddpm, LayoutPrior(), None)
    made = sampler.sample(Condition.of_lists([[0, 1]], 3), [(0, 0)], context.config.eval)
    assert made.shape == (1, 3, size, size)
