"""Every system and choice of the reports runs through its command."""

import json
import os
import shutil
from argparse import Namespace
from contextlib import ExitStack

import numpy
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from models.choices import CRITIC_CONDITIONS
from models.evaluator import Evaluator
from stages import ldm
from stages.engine.command import Context
from stages.engine.config import load
from stages.engine.export import read_about, save_export
from tests.conftest import HERE, SMOKE, ask_for_few
from tests.data.folder import write_folder
from tests.helpers import assert_one_line, digest, interrupted_at, lines
from tests.stages.handful import context_with

GAN = [
    *(f"gan.loss={name}" for name in ("wgan-gp", "wgan", "hinge", "non-saturating", "lsgan", "r3gan")),
    *(f"gan.critic.condition={name}" for name in CRITIC_CONDITIONS),
    *(f"gan.generator.condition={name}" for name in ("concatenation", "modulation", "batch-norm")),
    "gan.body=dcgan",
    "gan.attention=true",
    "gan.auxiliary_schedule=rising",
]
MAP, READ = (
    ("gan.generator.entry=map", "gan.generator.condition=modulation"),
    ("gan.critic.read=places", "gan.critic.pool=sum"),
)
LATENTS = ("gan.space=latents", "gan.generator.channels=[8,8,8]", "gan.critic.channels=[8,8,8]")
PLACED = {
    "map": MAP,
    "read": READ,
    "both-r3gan": (*MAP, *READ, "gan.loss=r3gan"),
    "both-on-latents": (*MAP, *READ, *LATENTS),
}
DENOISING = [
    *(f"prediction={name}" for name in ("mean", "noise", "v", "x0")),
    "bound=true",
    *(f"schedule={name}" for name in ("linear", "cosine", "beta-cosine", "sigmoid")),
    "zero_terminal_snr=true",
]
SAMPLING = [
    ("eval.sampler=ancestral",),
    ("eval.sampler=ancestral", "eval.clip=1.0"),
    ("eval.spacing=uniform",),
    ("eval.sampler=dpm-solver++",),
    ("eval.spacing=quadratic", "eval.eta=1.0"),
    ("eval.guidance=3.0", "eval.interval=[0.2,0.8]"),
]
ROWS = 2  # label sets of each test set


@pytest.fixture(scope="module")
def root(chain, tmp_path_factory):
    """Returns a root with the chain's exports and a few label sets, in which every system here is trained."""
    root = tmp_path_factory.mktemp("systems")
    (root / "smoke").symlink_to(chain / "smoke")
    shutil.copytree(chain / "smoke/render", root / "few", copy_function=os.symlink)
    ask_for_few(root / "few", ROWS)
    return root


def base(root, name):
    """Returns the arguments of an experiment that uses the chain's scenes, evaluator and autoencoder."""
    return (
        f"root={root}",
        f"name={name}",
        f"data.folder={root}/few",
        "uses={evaluator: smoke, vae: smoke}",
        "eval.seeds=[0]",
        f"eval.batch={ROWS}",
    )


@pytest.mark.parametrize("name", PLACED)
def test_a_gan_on_a_map_of_places_draws_with_places_and_without(stage, root, name):
    arguments = (*base(root, f"gan-placed-{name}"), *PLACED[name])
    status, said = stage("gan", *arguments)
    assert status == 0, said
    pictures, takes_places = [], MAP[0] in PLACED[name]
    for labels in ("red cube at 0.2 0.3", "red cube at 0.8 0.7", "red cube"):
        out = root / "x.png"
        status, said = stage("sample", *arguments, "--labels", labels, "--model", "gan", "--out", str(out))
        if " at " in labels and not takes_places:  # only its critic reads them
            assert_one_line(status, said, "trained without places", "gan.generator.entry=map")
        else:
            assert status == 0, said
            pictures.append(out.read_bytes())
    assert len(set(pictures)) == (3 if takes_places else 1)


@pytest.mark.parametrize("change", GAN)
def test_gan(stage, root, change):
    arguments = (*base(root, "gan-" + change.replace("=", "-").replace("+", "-")), change)
    status, said = stage("gan", *arguments)
    assert status == 0, said
    assert stage("sample", *arguments, "--labels", "red cube", "--model", "gan", "--out", str(root / "x.png"))[0] == 0


@pytest.mark.parametrize("section", ["ldm", "ddpm"])
@pytest.mark.parametrize("change", DENOISING)
def test_denoising(stage, root, section, change):
    arguments = (*base(root, f"{section}-{change.replace('=', '-')}"), f"{section}.{change}", f"{section}.steps=2")
    if change.startswith("zero_terminal"):
        arguments += (f"{section}.min_snr=null",)
    assert stage(section, *arguments, f"{section}.preview_every=2")[0] == 0
    out = root / "y.png"
    status, said = stage("sample", *arguments, "--labels", "red cube", "--model", section, "--out", str(out))
    assert status == 0, said
    assert Image.open(out).width > 100
    assert numpy.asarray(Image.open(out).crop((4, 4, 128, 128))).std() > 0  # of the first picture, without its frame


@pytest.mark.parametrize("changes", SAMPLING, ids=lambda changes: "-".join(changes))
@pytest.mark.parametrize("model", ["ldm", "ddpm"])
def test_sampling(stage, root, model, changes):
    arguments = (*base(root, f"sampling-{model}"), f"models=[{model}]", "ldm.timesteps=12")
    assert stage(model, *arguments)[0] == 0
    status, said = stage("evaluate", *arguments, *changes)
    assert status == 0, said


class OneLayer(nn.Module):
    """Stands in for the UNet, which takes minutes to compile."""

    def __init__(self, inputs, classes, *unused, **settings):
        super().__init__()
        self.inputs, self.conv, self.embedding = inputs, nn.Conv2d(inputs, inputs, 1), nn.Linear(classes, inputs)

    def forward(self, x, t, condition, keep):
        told = self.embedding(condition.labels) * keep[:, None]
        return F.silu(self.conv(x) + told[..., None, None])


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("network", ["one-layer", pytest.param("unet", marks=pytest.mark.faults)])
def test_sampling_compiled(stage, root, monkeypatch, network):
    """The picture is the same as without compiling."""
    if network == "one-layer":  # where a command finds it, and where one that is run as a program does
        monkeypatch.setattr("stages.ldm.UNet", OneLayer)
        monkeypatch.setattr("models.unet.UNet", OneLayer)
    tiny = "ldm.network={channels: 8, multipliers: [1], blocks: 1, head_width: 8, expansion: 0, context: 8}"
    arguments = (*base(root, f"compiled-{network}"), tiny, "ldm.steps=2", "ldm.learning_rate=0.05", "eval.guidance=2.0")
    status, said = stage("ldm", *arguments)
    assert status == 0, said
    status, said = stage("ldm", *arguments, "ldm.compile=true")  # a finished run is used whether it was compiled or not
    assert (status, "finished already" in said) == (0, True), said
    frames, made = torch._dynamo.utils.counters["frames"], []
    for compile_ in ("false", "true"):
        out = root / f"compiled-{network}-{compile_}.png"
        how = (f"eval.compile={compile_}", "--labels", "red cube", "--model", "ldm", "--out", str(out))
        before = frames["ok"]
        status, said = stage("sample", *arguments, *how)
        assert (status, frames["ok"] > before) == (0, compile_ == "true"), said
        made.append(numpy.asarray(Image.open(out), dtype=float))
    assert abs(made[0] - made[1]).mean() < 0.5 < made[0].std()  # of 255


def test_without_a_compiler_is_one_line(stage, root, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/compiler")
    arguments = (*base(root, "no-compiler"), "ldm.compile=true", "device=cpu")
    assert_one_line(*stage("ldm", *arguments), "torch.compile", "compiler", "`compile` false")


def test_the_ablation_of_the_multiply_add_net_is_one_key(stage, root):
    for paths in ("up", "up+down"):
        arguments = (*base(root, f"ddpm-{paths.replace('+', '-')}"), f"ddpm.paths={paths}", "models=[ddpm]")
        assert stage("ddpm", *arguments)[0] == 0
        status, said = stage("evaluate", *arguments)
        assert status == 0, said
    report = json.loads((root / "ddpm-up/eval/report.json").read_text())
    assert report["vae"] is None
    assert set(report["results"]) == {"ddpm"}


def test_with_a_plateau_only_a_finished_run_can_be_sampled_in_other_ways(stage, root):
    """The previews' accuracy drives the learning rate, so how they are sampled is part of the run until its end."""
    arguments = (*base(root, "ddpm-eval"), "models=[ddpm]")
    assert stage("ddpm", *arguments)[0] == 0
    others = ("eval.steps=2", "eval.guidance=1", "eval.seeds=[7]")
    status, said = stage("ddpm", *arguments, *others)
    assert (status, "finished already" in said) == (0, True), said
    (root / "ddpm-eval/ddpm/export.safetensors").unlink()
    assert_one_line(*stage("ddpm", *arguments, *others), "parent eval.steps: 3 -> 2")
    assert stage("ddpm", *arguments, "eval.seeds=[7]")[0] == 0


@pytest.mark.parametrize("model", ["ldm", "ddpm"])
@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_classifier_guidance_by_another_network_than_the_judge(stage, root, model, sampler):
    """The guide is the evaluator of another experiment; both its accuracy and the judge's are reported."""
    guide = (f"root={root}", "name=guide", f"data.folder={root}/few", "seed=2")
    assert stage("evaluator", *guide)[0] == 0
    arguments = (*base(root, f"guided-{model}"), f"models=[{model}]", "ldm.timesteps=12")
    arguments = (*arguments[:3], "uses={evaluator: smoke, vae: smoke, guide: guide}", *arguments[4:])
    assert stage(model, *arguments)[0] == 0
    status, said = stage("evaluate", *arguments, f"eval.sampler={sampler}", "eval.classifier_guidance=2.0")
    assert status == 0, said
    report = json.loads((root / f"guided-{model}/eval/report.json").read_text())
    labels = sum(map(len, json.loads((root / "few/test.json").read_text())))
    hits = labels * report["results"][model]["test"]["accuracy_by_the_guide"]
    assert 0 <= round(hits) <= labels and hits == pytest.approx(round(hits), abs=1e-3), "no share of all labels"


def test_the_plateau_factor_is_part_of_the_run(stage, tmp_path, monkeypatch):
    """If no accuracy rises the factor falls, and an interrupted run keeps it: it ends as an uninterrupted one."""
    monkeypatch.setattr("stages.judge.accuracy", lambda scores, labels: 0.5)
    save_export(tmp_path / "judge/evaluator/export.safetensors", Evaluator(24).state_dict(), {})
    settings = (f"root={tmp_path}", f"data.folder={write_folder(tmp_path / 'data')}", "data.validation_every=2")
    pace = ("ddpm.steps=8", "ddpm.preview_every=1", "ddpm.checkpoint_every=4", "ddpm.plateau_patience=2")
    arguments = (*settings, *pace, "uses.evaluator=judge", "eval.steps=1", "eval.batch=2")
    whole, resumed = tmp_path / "whole/ddpm", tmp_path / "resumed/ddpm"
    status, said = stage("ddpm", *arguments, "name=whole")
    assert status == 0, said
    assert plateau(whole) == {"best": {"accuracy_new_test": 0.5, "accuracy_test": 0.5}, "waited": 1, "factor": 0.125}

    with interrupted_at(3, monkeypatch):
        assert stage("ddpm", *arguments, "name=resumed")[0] == 130
    assert plateau(resumed) == {"best": plateau(whole)["best"], "waited": 1, "factor": 0.5}
    status, said = stage("ddpm", *arguments, "name=resumed")
    assert (status, "continuing at step 4" in said) == (0, True), said
    assert plateau(resumed) == plateau(whole)
    assert digest(resumed) == digest(whole)
    assert lines(resumed) == lines(whole)


def test_a_training_that_ends_where_it_is_good_enough_goes_on_from_there(root):
    """It ends between log lines and checkpoints, and still writes both."""

    def train(name, *until):
        changes = ("ldm.preview_every=1", "ldm.checkpoint_every=6", "ldm.log_every=2")
        context = context_with(*base(root, name), *changes)
        with context.held:
            ldm.main(context, *until)
        return context.folder("ldm")

    def until(line):
        return "accuracy_test" in line and line["step"] == 3

    folder = train("enough", until)
    assert [path.name for path in folder.glob("*.ckpt")] == ["step-00000003.ckpt"]
    assert not (folder / "export.safetensors").exists()
    before = (folder / "metrics.jsonl").read_bytes()
    train("enough", until)
    assert (folder / "metrics.jsonl").read_bytes() == before
    whole = digest(train("not-ended"))
    assert digest(train("enough")) == whole
    assert lines(folder) == lines(root / "not-ended/ldm")
    (folder / "export.safetensors").unlink()  # as if it had been killed before it
    assert digest(train("enough", until)) == whole


def test_muons_momentum_is_part_of_the_run(stage, root, monkeypatch):
    whole, resumed = ((*base(root, name), "ldm.optimizer=muon") for name in ("muon", "muon-resumed"))
    assert stage("ldm", *whole)[0] == 0
    with interrupted_at(3, monkeypatch):
        assert stage("ldm", *resumed)[0] == 130
    with monkeypatch.context() as another_version:
        another_version.setattr("stages.engine.muon.WIDEST", 15)
        assert_one_line(*stage("ldm", *resumed), "was started by another version", "--fresh")
    status, said = stage("ldm", *resumed)
    assert (status, "continuing at step 4" in said) == (0, True), said
    assert digest(root / "muon-resumed/ldm") == digest(root / "muon/ldm")
    assert_one_line(*stage("ldm", *whole, "ldm.optimizer=adam"), "ldm.optimizer: muon -> adam")


def plateau(folder):
    """Returns the plateau's state in the newest checkpoint."""
    newest = max(folder.glob("step-*.ckpt"))
    return torch.load(_payload(newest), weights_only=True)["parts"]["plateau"]


def _payload(path):
    import io

    from stages.engine.checkpoint import MAGIC

    return io.BytesIO(path.read_bytes()[len(MAGIC) + 32 :])


def test_a_configuration_without_a_ddpm_section_says_which_has_one(stage, tmp_path):
    assert_one_line(*stage("ddpm", f"root={tmp_path}", config="configs/demo.yaml"), "ddpm-multiply-add.yaml")


def test_a_model_that_serves_the_experiment_serves_none_of_its_variants():
    """Otherwise a variant's figures would be those of the model it differs from."""
    config = load(HERE / "configs/iclevr-guided.yaml")
    context = Context(config, torch.device("cpu"), torch.float32, Namespace(), 0.0, ExitStack())
    variant = context.derived("other", "ldm.schedule=linear")
    assert config.uses["ldm"] == "iclevr"
    served = {"evaluator": "iclevr", "vae": "iclevr", "guide": "iclevr-guide", "reader": "iclevr-guided"}
    assert variant.config.uses == served


def test_a_used_stage_is_not_trained_again(stage, root):
    status, said = stage("vae", *base(root, "user"))
    assert (status, "using the export of experiment smoke" in said) == (0, True), said
    assert_one_line(*stage("vae", *base(root, "user")[:3], "uses={vae: nobody}"), "nobody", "is missing")


def test_a_configuration_extends_another(tmp_path):
    from stages.engine.config import load

    (tmp_path / "a.yaml").write_text("extends: b.yaml\nldm: {steps: 7}\n")
    (tmp_path / "b.yaml").write_text("name: other\n" + (HERE / SMOKE).read_text())
    config = load(tmp_path / "a.yaml")
    assert (config.name, config.ldm.steps, config.ldm.batch) == ("a", 7, 8)


def test_a_circle_of_configurations_is_one_line(stage, tmp_path):
    (tmp_path / "a.yaml").write_text("extends: a.yaml\n")
    assert_one_line(*stage("ldm", config=str(tmp_path / "a.yaml")), "extends", "no circle")


def test_the_export_names_what_served(stage, root, chain):
    assert stage("gan", *base(root, "served"))[0] == 0
    about = read_about(root / "served/gan/export.safetensors", "")
    assert about["parents"]["data"] == read_about(chain / "smoke/evaluator/export.safetensors", "")["parents"]["data"]
