"""The generator of one step: its pairs, its teacher's noise and scenes, interruptions, and what it refuses."""

import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import stages.onestep
from models.unet import UNet
from stages.engine.dataset import load_dataset
from stages.engine.draws import Draws
from stages.engine.errors import Interrupted, UserError
from stages.engine.export import load_export, save_export
from stages.engine.run import Run
from stages.evaluate import main as evaluate
from stages.ldm import load_sampler
from stages.onestep import OnestepTask, load_onestep, made_pairs, make_part, pairs_of, parents_of
from tests.conftest import make
from tests.helpers import assert_one_line, digest, lines
from tests.stages.distilled import context_of, distil
from tests.stages.handful import DEVICE, context_with, noise_pictures


def run_of(context):
    dataset = load_dataset(context.config, DEVICE)
    teacher, about = load_sampler(context)
    return Run(context, "onestep", parents_of(context, dataset, about)), teacher, about, dataset


@pytest.fixture(scope="module")
def root(chain, tmp_path_factory):
    """Returns a root with the chain's exports and scenes."""
    root = tmp_path_factory.mktemp("onestep")
    for name in ("smoke", "packs"):
        (root / name).symlink_to(chain / name)
    return root


@contextmanager
def seen_by(network):
    """Lists what each call of a network is given."""
    seen = []
    handle = network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    yield seen
    handle.remove()


def test_pairs_are_noise_and_what_the_teacher_makes_of_it(root, monkeypatch):
    monkeypatch.setattr(stages.onestep, "PART", 4)
    context = context_of(root, "onestep.chosen_places=0.5", name="pairs")
    run, teacher, _, dataset = run_of(context)
    with context.held:
        pairs = made_pairs(run, teacher, dataset)
    assert len(pairs.noise) == len(pairs.latents) == len(pairs.conditions) == 10
    seed = context.config.seed
    for i in (0, 5, 9):
        asked, key = pairs.conditions[[i]], (seed, "onestep", "pair", i)
        with seen_by(teacher.network) as seen:
            picture = teacher.sample(asked, [key], context.config.eval)
        assert torch.equal(seen[0][0][0], pairs.noise[i])
        drawn = teacher.decode(pairs.latents[[i]].repeat(32, 1, 1, 1))[:1].float()
        assert torch.equal(drawn.clamp(-1, 1), picture)
    objects = {tuple(row) for row in dataset.conditions.objects.tolist()}
    assert {tuple(row) for row in pairs.conditions.objects.tolist()} <= objects
    of_pictures = {tuple(row.flatten().tolist()) for row in dataset.conditions.places}
    own = [tuple(row.flatten().tolist()) in of_pictures for row in pairs.conditions.places]
    assert pairs.conditions.wholly_placed.all() and any(own)


def test_a_teacher_that_is_told_turns_teaches_them(root, stage, monkeypatch):
    uses = ("uses={evaluator: smoke, vae: smoke}", f"data.folder={root}/smoke/render", f"root={root}", "name=turned")
    status, said = stage("ldm", *uses, "ldm.network.places=true", "ldm.network.turns=true", "ldm.steps=1")
    assert status == 0, said
    context = context_of(root, "onestep.chosen_places=0.5", "uses.ldm=turned", name="turning")
    run, teacher, _, dataset = run_of(context)
    with context.held:
        pairs = made_pairs(run, teacher, dataset)
    assert torch.equal(pairs.conditions.turned, pairs.conditions.present)
    of_pictures = set(dataset.conditions.turns[dataset.conditions.present].tolist())
    own = [turn in of_pictures for turn in pairs.conditions.turns[pairs.conditions.present].tolist()]
    assert any(own) and not all(own), "those of the training picture, or chosen with the places"
    sampler, _ = distilled_sampler(context)
    told, tell = [], UNet.told
    monkeypatch.setattr(
        UNet, "told", lambda self, condition, *how: told.append(condition) or tell(self, condition, *how)
    )
    asked = next(iter(dataset.test_sets.values()))[:2]
    for drawer in (teacher, sampler):
        drawer.sample(asked, [(7, "scene", i) for i in range(2)], context.config.eval)
    assert torch.equal(told[0].turns[:2], told[-1].turns[:2]) and told[0].turned[:2, 0].all()
    older = {"noise": pairs.noise, "latents": pairs.latents, "objects": pairs.conditions.objects}
    assert not pairs_of({**older, "places": pairs.conditions.places}, dataset, context).conditions.turned.any()


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.25, 50, 90), (1.0, 256, 256)])
def test_that_share_of_the_pairs_has_chosen_places_and_the_rest_their_picture_s(tmp_path, share, least, most):
    dataset, context = noise_pictures(tmp_path), context_with(f"onestep.chosen_places={share}")
    places = torch.rand(8, 1, 2, generator=torch.Generator().manual_seed(0))
    dataset, asked = replace(dataset, conditions=dataset.conditions.with_places(places)), []
    teacher = SimpleNamespace(
        shape=(6, 8, 8),
        completed=lambda condition, keys, how: asked.append(condition) or condition,
        undecoded=lambda condition, keys, how: torch.zeros(len(condition), 6, 8, 8),
    )
    rows = torch.arange(256) % 8
    make_part(context, teacher, dataset, rows, 0)
    known = asked[0].placed[:, 0]
    assert least <= (~known).sum() <= most
    assert torch.equal(asked[0].places[known], places[rows][known])


def distilled_sampler(context):
    """Trains the generator of a context and loads it."""
    distil(context)
    return load_onestep(context)


def test_what_is_drawn_does_not_depend_on_how_many_are(root, monkeypatch):
    context, more = (context_of(root, f"onestep.pairs={n}", name=f"of-{n}") for n in (3, 7))
    run, teacher, _, dataset = run_of(context)
    with context.held, more.held:
        few, many = made_pairs(run, teacher, dataset), made_pairs(run_of(more)[0], teacher, dataset)
    assert torch.equal(few.noise, many.noise[:3])
    assert torch.equal(few.latents, many.latents[:3])
    assert torch.equal(few.conditions.objects, many.conditions.objects[:3])


def test_the_generator_takes_its_teachers_noise_and_places_in_one_call(root, monkeypatch):
    told, tell = [], UNet.told
    monkeypatch.setattr(
        UNet, "told", lambda self, condition, *how: told.append(condition) or tell(self, condition, *how)
    )
    distil(context := context_of(root))
    teacher, _ = load_sampler(context)
    sampler, about = load_onestep(context)
    asked = next(iter(load_dataset(context.config, DEVICE).test_sets.values()))[:3]
    keys, how = [(7, "scene", i) for i in range(3)], context.config.eval
    told.clear()  # what the pairs were made of
    with seen_by(teacher.network) as of_teacher:
        teacher.sample(asked, keys, how)
    with seen_by(sampler.sampler.network) as of_pupil:
        pictures = sampler.sample(asked, keys, how)
    assert told[-1].wholly_placed[:3].all()
    assert torch.equal(told[-1].places[:3], told[0].places[:3]), "the places"
    assert len(of_pupil) == 1 and len(of_teacher) == how.steps
    assert torch.equal(of_pupil[0][0][:3], of_teacher[0][0][:3]), "the noise"
    assert (of_pupil[0][1] == of_teacher[0][1][0]).all(), "the last timestep"
    assert sampler.takes_places and pictures.shape == (3, 3, 64, 64)
    other = how.model_copy(update={"steps": 2, "guidance": 5.0, "sampler": "ancestral"})
    assert torch.equal(sampler.sample(asked, keys, other), pictures), "its guidance is in its weights"
    assert about["parents"]["ldm"] == load_export(root / "smoke/ldm/export.safetensors", "")[1]["sha256"]


@pytest.mark.parametrize(
    "changes", [(), ("onestep.distance=huber", "onestep.critic.weight=0.0")], ids=["both", "alone"]
)
def test_the_generator_comes_nearer_to_its_teacher(root, changes):
    faster = ("onestep.batch=8", "onestep.steps=40", "onestep.learning_rate=5e-3", "onestep.critic.weight=0.01")
    context = context_of(root, *faster, *changes, name=f"learner-{len(changes)}")
    run, teacher, about, dataset = run_of(context)
    with context.held:
        task = OnestepTask(context, dataset, teacher, about, made_pairs(run, teacher, dataset))
    before = {name: weight.clone() for name, weight in teacher.network.named_parameters()}
    found = [task.step(step, Draws(0, "test", step, 8, DEVICE)) for step in range(40)]
    distances = torch.stack([metrics["distance"].detach() for metrics in found])
    assert distances[-5:].mean() < 0.7 * distances[:5].mean()
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.network.named_parameters())
    assert all(weight.grad is None for weight in teacher.network.parameters())
    assert ("critic" in found[0]) == (not changes)


def test_the_critic_learns_to_tell_and_steers_the_generator(root):
    context = context_of(root, "onestep.batch=8", "onestep.critic.learning_rate=1e-2", name="judged")
    run, teacher, about, dataset = run_of(context)
    with context.held:
        task = OnestepTask(context, dataset, teacher, about, made_pairs(run, teacher, dataset))
    assert task.critic is not None
    draws, pairs = Draws(0, "test", 0, 8, DEVICE), task.pairs
    made = task.generated(pairs.noise[:8], pairs.conditions[:8])
    t, blur = draws.integers(task.noisy), draws.normal(*made.shape[1:])
    inputs = made.detach(), pairs.latents[:8], blur, t, pairs.conditions[:8]
    losses = []
    for _ in range(30):
        of_critic, _ = task.judged(task.critic, *inputs)
        task.optimizers[1].update(of_critic, 0)
        losses.append(of_critic.item())
    assert losses[-1] < 0.5 * losses[0]
    _, adversarial = task.judged(task.critic, made, *inputs[1:])
    gradients = torch.autograd.grad(adversarial, list(task.network.parameters()), allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)


class Killed(Interrupted):
    """A signal's end, at a place that the test chooses."""


def killed_after(monkeypatch, module, name, calls):
    """Lets `module.name` raise once it has been called so many times."""
    real, counted = getattr(module, name), []

    def called(*arguments, **more):
        if len(counted) == calls:
            raise Killed(15)
        counted.append(name)
        return real(*arguments, **more)

    monkeypatch.setattr(module, name, called)


@pytest.mark.parametrize("where", ["pairs", "steps"])
def test_an_interrupted_run_equals_an_uninterrupted_one(root, monkeypatch, where):
    monkeypatch.setattr(stages.onestep, "PART", 4)
    whole, context = distil(context_of(root, name=f"whole-{where}")), context_of(root, name=f"killed-{where}")
    folder = context.folder("onestep")
    with monkeypatch.context() as patch:
        if where == "pairs":
            killed_after(patch, stages.onestep, "save_export", 2)
        else:
            killed_after(patch, OnestepTask, "step", 3)
        with pytest.raises(Killed):
            distil(context)
    assert len([*folder.glob("pairs/*")]) == (2 if where == "pairs" else 3)
    assert not (folder / "export.safetensors").exists()
    asked = []
    monkeypatch.setattr(
        stages.onestep, "make_part", lambda *given, made=stages.onestep.make_part: asked.append(given) or made(*given)
    )
    distil(context_of(root, name=f"killed-{where}"))
    assert len(asked) == (1 if where == "pairs" else 0), "what was there is made again"
    assert digest(folder) == digest(whole)
    assert lines(folder) == lines(whole)


def test_pairs_of_other_settings_are_refused_and_fresh_moves_them_aside(root, monkeypatch):
    context = context_of(root, name="other")
    with monkeypatch.context() as patch:
        killed_after(patch, OnestepTask, "step", 0)
        with pytest.raises(Killed):
            distil(context)
    for change, said in (("eval.steps=2", r"eval\.steps: 3 -> 2"), ("onestep.chosen_places=1.0", "chosen_places")):
        with pytest.raises(UserError, match=f"holds another run .*{said}"):
            distil(context_of(root, change, name="other"))
    distil(context_of(root, "onestep.learning_rate=2e-3", name="other"))  # pairs do not depend on it
    folder = distil(context_of(root, "eval.steps=2", name="other", fresh=True))
    assert (folder / "pairs").is_dir() and (folder.parent / "onestep.old-1/pairs").is_dir()
    assert not (folder.parent / "onestep.old-2").exists()


def test_a_finished_generator_stays_valid_with_another_guidance(root, capsys):
    distil(context_of(root, name="finished"))
    distil(context_of(root, "eval.guidance=4.0", "eval.sampler=ancestral", name="finished"))
    assert "finished already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("eval.sampler=ancestral",), "eval.sampler=ddim eval.eta=0.0"),
        (("eval.eta=0.5",), "eval.eta=0.5 draws more"),
        (("onestep=null",), "no section onestep; configs/onestep.yaml has one"),
    ],
)
def test_what_cannot_be_distilled_is_refused_before_pairs_are_made(root, changes, said):
    context = context_of(root, *changes, name="refused")
    with pytest.raises(UserError, match=said):
        distil(context)
    assert not (context.folder("onestep") / "pairs").exists()


def changed_ldm(root, chain, name, **about):
    """Saves the chain's LDM with other weights or another description as that of the experiment `name`."""
    tensors, old = load_export(chain / "smoke/ldm/export.safetensors", "")
    tensors["leave.2.bias"] = tensors["leave.2.bias"] + 1
    del old["sha256"]
    save_export(root / name / "ldm/export.safetensors", tensors, {**old, **about})


def test_an_ldm_that_predicts_noise_is_refused(root, chain):
    config = load_export(chain / "smoke/ldm/export.safetensors", "")[1]["config"]
    changed_ldm(root, chain, "noisy", config={**config, "prediction": "noise"})
    context = context_of(root, "uses.ldm=noisy", name="of-noise")
    with pytest.raises(UserError, match=r"predicts noise, .* train the LDM with ldm\.prediction=v"):
        distil(context)


def test_another_ldm_or_autoencoder_than_the_generators_is_refused(root, chain):
    distil(context_of(root, name="first"))
    changed_ldm(root, chain, "second")
    with pytest.raises(UserError, match=r"distilled from another LDM \(ldm: .* -> .*make onestep FRESH=1"):
        load_onestep(context_of(root, "uses.ldm=second", name="first"))
    with pytest.raises(UserError, match=r"another run \(parent ldm: "):
        distil(context_of(root, "uses.ldm=second", name="first"))
    tensors, about = load_export(chain / "smoke/vae/export.safetensors", "")
    del about["sha256"]
    tensors["latent_mean"] = tensors["latent_mean"] + 1
    save_export(root / "third/vae/export.safetensors", tensors, about)
    with pytest.raises(UserError, match=r"trained on another autoencoder \(vae: "):
        load_onestep(context_of(root, "uses.vae=third", name="first"))
    with pytest.raises(UserError, match=r"ldm/export.safetensors is missing: run `make ldm"):
        load_onestep(context_of(root, "uses={evaluator: smoke, vae: smoke}", name="first"))


def test_it_is_evaluated_compared_and_drawn_from_like_any_model(stage, root):
    context = context_of(root, "models=[ldm,onestep]", name="shown")
    distil(context)
    evaluate(context)
    report = json.loads((root / "shown/eval/report.json").read_text())
    assert list(report["results"]) == ["ldm", "onestep"]
    assert "One-step LDM" in (root / "shown/eval/report.html").read_text()
    uses = "uses={evaluator: smoke, vae: smoke, ldm: smoke}"
    common = (f"root={root}", "name=shown", "models=[ldm,onestep]", uses, f"data.folder={root}/smoke/render")
    compared = ("--pictures", "4", *common, "eval.seeds=[0]", "precision=float32")
    status, said = stage("compare", *compared)
    assert status == 0, said
    assert "One-step LDM" in (root / "shown/compare/report.md").read_text()
    path = root / "one.png"
    drawn = ("--labels", "red cube", "--model", "onestep", "--count", "2", "--out", str(path))
    status, said = stage("sample", *drawn, *common)
    assert status == 0 and path.exists(), said
    assert_one_line(*stage("sample", *drawn, "--steps", "3", *common), "leave them out")


def test_make_trains_the_ldm_first():
    said = make("onestep", "-n", "CONFIG=configs/onestep.yaml").stdout
    stages_run = [line.split("-m stages.")[1].split()[0] for line in said.splitlines() if "-m stages." in line]
    assert stages_run[-3:] == ["vae", "ldm", "onestep"]
    said = make("eval", "-n", "CONFIG=configs/onestep.yaml").stdout
    assert said.index("-m stages.onestep ") < said.index("-m stages.evaluate ")
