"""Each experiment's command writes its page, figures and table on the smoke configuration."""

import json
import os
import shutil
from argparse import Namespace
from contextlib import ExitStack

import pytest
import torch
import yaml
from PIL import Image

from models import self_condition
from stages.engine.command import Context
from stages.engine.config import derive, load
from stages.engine.dataset import load_dataset
from stages.engine.export import read_about
from stages.experiments.ablations import GROUPS, section_of
from stages.experiments.pace import PLAIN, plain
from stages.experiments.rows import changes_of, homes_of, named, told_of
from stages.experiments.systems import SMALL, SYSTEMS
from stages.experiments.variety import variety_of_real
from tests.conftest import ask_for_few
from tests.helpers import assert_one_line

ROWS = 8  # label sets of each test set
BATCH = f"eval.batch={ROWS}"


def page(root, folder, figures, tables=1):
    folder = root / "smoke" / folder
    html = (folder / "report.html").read_text()
    assert "http://" not in html and "https://" not in html
    assert html.count("data:image/png") == len(figures)
    assert html.count("<table>") == tables
    for name in figures:
        assert Image.open(folder / f"{name}.png").width > 100
    assert (folder / "report.md").read_text().startswith("# ")
    return json.loads((folder / "report.json").read_text())


def linked(chain, root):
    """Returns a root whose smoke experiment is the chain's, by links."""
    shutil.copytree(chain / "smoke/render", root / "smoke/render", copy_function=os.symlink)
    for name in ("evaluator", "reader", "vae", "ldm", "gan"):
        (root / "smoke" / name).symlink_to(chain / "smoke" / name)
    return root


@pytest.fixture(scope="module")
def root(chain, tmp_path_factory):
    """Returns a separate root for what experiments train, with a few label sets; what they use is the chain's."""
    root = linked(chain, tmp_path_factory.mktemp("experiments"))
    ask_for_few(root / "smoke/render", ROWS)
    return root


def test_gradnorm(stage, root):
    status, said = stage("gradnorm", "--steps", "4", f"root={root}")
    assert status == 0, said
    variants = page(root, "gradnorm", ["gradnorm"])["variants"]
    for name in ("wgan-gp", "wgan"):
        layers, moments = variants[name]["layers"], variants[name]["moments"]
        assert layers[0].startswith("enter") and layers[-1].startswith("score")
        assert len(layers) >= 4 and all(len(norms) == len(layers) for _, norms in moments)
        assert all(norm > 0 for _, norms in moments for norm in norms)


def test_progress(stage, root):
    status, said = stage("progress", f"root={root}")
    assert status == 0, said
    result = page(root, "progress", ["progress", "strip"])
    table = (root / "smoke/progress/report.md").read_text()
    assert all(f"| {names} | {', '.join(map(str, result['timesteps']))} |" in table for names in result["labels"])
    assert len(result["labels"]) == 5
    assert result["timesteps"] == sorted(result["timesteps"], reverse=True)
    before = (root / "smoke/progress/report.json").read_bytes()
    status, said = stage("progress", f"root={root}", "eval.seeds=[1]")
    assert (status, "is now" in said) == (0, True), said
    assert (root / "smoke/progress.old-1/report.json").read_bytes() == before


def test_samplers(stage, root, monkeypatch):
    """With a clock that counts the network's calls: a loaded machine does not delay it."""
    calls, predict = [], self_condition.predict

    def counted(*inputs):
        calls.append(0)
        return predict(*inputs)

    monkeypatch.setattr(self_condition, "predict", counted)
    monkeypatch.setattr("stages.judge.time", Namespace(perf_counter=lambda: float(len(calls))))
    status, said = stage("samplers", f"root={root}", "eval.seeds=[0]", BATCH)
    assert status == 0, said
    results = page(root, "samplers", ["samplers"])["results"]
    names = [f"DDIM, {n} steps" for n in (100, 50, 25, 10, 5)] + [f"DPM-Solver++, {n} steps" for n in (20, 10, 5)]
    assert list(results) == ["DDPM, 100 steps", *names]
    for name, sets in results.items():
        rate = ROWS / int(name.split()[1])
        assert [figures["images_per_second"] for figures in sets.values()] == pytest.approx([rate] * 2)


def test_ablations(stage, root):
    groups = ("conditions", "weights", "guidance")  # every schedule and prediction is trained by test_systems
    status, said = stage("ablations", "--steps", "2", "--runs", "1", f"root={root}", BATCH, "--only", *groups)
    assert status == 0, said
    result = page(root, "ablations", groups, len(groups))
    assert set(result) == set(groups)
    assert set(result["conditions"]) == {"up", "up + down"}
    assert all(len(v) == 1 for group in result.values() for sets in group.values() for v in sets.values())
    assert_one_line(*stage("ablations", "--steps", "0", f"root={root}"), "--steps 0")


def test_a_choice_that_is_not_valid_is_left_out_before_anything_is_trained(stage, tmp_path):
    settings = (f"root={tmp_path}", "ldm.zero_terminal_snr=true", "ldm.min_snr=null")
    status, said = stage("ablations", "--steps", "2", "--runs", "1", *settings, "--only", "prediction")
    first, last = said.splitlines()[0], said.splitlines()[-1]
    assert status == 2 and "prediction noise is left out" in first and "zero_terminal_snr" in first, said
    assert "no such data folder" in last, last
    assert not list(tmp_path.glob("smoke-ablation-*"))


def test_ablations_lend_a_ddpm_to_a_configuration_without_one(stage, root):
    few = ("--steps", "2", "--runs", "1", "--fresh", f"root={root}", "ddpm=null", "eval.seeds=[0]")
    few += ("eval.interval=[0.2,0.8]", BATCH)
    status, said = stage("ablations", *few, "--only", "conditions")
    assert status == 0, said
    assert set(page(root, "ablations", ["conditions"])["conditions"]) == {"up", "up + down"}
    assert "configs/ddpm-small.yaml" in (root / "smoke/ablations/report.md").read_text()
    for value, paths in (("up", "up"), ("up---down", "up+down")):
        config = yaml.safe_load((root / f"smoke-ablation-conditions-{value}-0/ddpm/config.yaml").read_text())
        assert (config["ddpm"]["width"], config["ddpm"]["paths"], config["ddpm"]["steps"]) == (80, paths, 2)
        assert (config["eval"]["sampler"], config["eval"]["steps"], config["eval"]["guidance"]) == ("ddim", 25, 3.0)
        assert config["eval"]["interval"] == [0.2, 0.8], "what the command line asks holds all the same"


def test_a_lent_section_brings_its_sampling_with_it():
    assert {"eval.sampler=ddim", "eval.steps=25", "eval.interval=[0.0, 0.9]"} <= {*section_of(SMALL, "ddpm")}
    full = section_of("configs/ddpm-multiply-add.yaml", "ddpm")
    assert "eval.sampler=ancestral" in full and not [o for o in full if o.startswith("eval.steps")]
    assert len(section_of("configs/gan-small.yaml", "gan")) == 1, "a GAN is not sampled in steps"


def test_compare(stage, root):
    status, said = stage("compare", f"root={root}", BATCH)
    assert status == 0, said
    result = page(root, "compare", ["ldm-alike", "gan-alike"], tables=2)
    sets = len(json.loads((root / "smoke/render/test.json").read_text()))
    said = f"the mean of {len(range(0, sets, max(1, sets // 4)))} sets of test"
    assert said in (root / "smoke/compare/report.md").read_text()
    data = load_dataset(load("configs/smoke.yaml", [f"root={root}"]), torch.device("cpu"))
    assert result["real"]["variety"] == pytest.approx(variety_of_real(data))
    assert "the real ones of the other half" in (root / "smoke/compare/report.md").read_text()
    assert result["real"]["quality"]["frechet_distance"] < result["gan"]["quality"]["frechet_distance"]
    for model in ("ldm", "gan"):
        assert result[model]["frechet_distance_on_evaluator_features"] > 0
        assert result[model]["mean_pairwise_distance"] > 0
        assert 0 <= result[model]["quality"]["coverage"] <= 1
        assert result[model]["training_memory_bytes"] > 2**27
        assert result[model]["variety"].keys() == result["real"]["variety"].keys() == {"one_layout", "over_layouts"}


def test_placed(stage, root):
    """The smoke LDM takes places, its GAN does not; only the last object named moves."""
    status, said = stage("placed", f"root={root}", "--labels", "gray cube, red sphere")
    assert status == 0, said
    assert "takes no places" in said
    result = page(root, "placed", ["ldm"])
    assert result["objects"] == ["gray cube", "red sphere"]
    assert list(result["pixels_off"]) == ["ldm"] and len(result["pixels_off"]["ldm"]) == 8
    still, walking = zip(*result["places"], strict=True)
    assert all(place == still[0] for place in still) and len(set(map(tuple, walking))) > 2
    arguments = ("placed", f"root={root}", "--labels")
    assert_one_line(*stage(*arguments, "red sphere at 0.5 0.5"), "leave the places out")
    assert_one_line(*stage(*arguments, "red car"), "unknown object 'red car'")
    assert_one_line(*stage(*arguments, "red cube, gray cube, blue cube, cyan cube"), "no training picture of 4 objects")


def test_held_out(stage, root):
    status, said = stage("held_out", f"root={root}")
    assert status == 0, said
    figures = [f"{m}-{n}" for m in ("ldm", "gan") for n in ("seen", "withheld", "four-objects", "five-objects")]
    result = page(root, "held-out", figures)
    assert set(result["ldm"]) == {"seen", "withheld", "four objects", "five objects"}
    status, said = stage("held_out", f"root={root}")
    assert status == 0 and said.count("finished already") == 2


def test_pace(stage, chain, tmp_path):
    root = linked(chain, tmp_path)  # with all label sets: of a few, such networks may find none
    status, said = stage("pace", "--accuracy", "0", f"root={root}", BATCH)
    assert status == 0, said
    found = page(root, "pace", ["pace"])
    for result in found.values():
        times = [seconds for seconds, _ in result["previews"]]
        assert times == sorted(times) and times[0] > result["vae_seconds"] > 0
        assert result["seconds"] is None or result["seconds"] in times
        assert result["seconds"] is None or (result["seconds"] == times[-1] and len(times) < 6)
    assert any(result["seconds"] is not None for result in found.values())
    status, said = stage("pace", "--accuracy", "0", "--to-the-end", f"root={root}", BATCH)
    assert status == 0, said
    whole = page(root, "pace", ["pace"])
    for name, result in found.items():
        assert whole[name]["previews"][: len(result["previews"])] == result["previews"]
        assert len(whole[name]["previews"]) == 6
        assert whole[name]["seconds"] == result["seconds"]
    assert read_about(root / "smoke-pace-plain/ldm/export.safetensors", "")["identity"]["precision"] == "float32"
    assert_one_line(*stage("pace", "--accuracy", "2", f"root={root}"), "--accuracy 2")


def test_the_plain_recipe_has_the_steps_that_adam_needs_and_guidance_throughout():
    config = load("configs/demo.yaml", ["vae.optimizer=muon", "ldm.optimizer=muon", "ldm.batch=128"])
    changed = derive(config, [*plain(config)])
    assert (config.vae.optimizer, changed.vae.optimizer) == ("muon", "adam")
    assert changed.vae.steps == 4 * config.vae.steps
    assert changed.vae.discriminator.start == 4 * config.vae.discriminator.start
    assert (config.ldm.optimizer, changed.ldm.optimizer) == ("muon", "adam")
    assert changed.ldm.steps * changed.ldm.batch == config.ldm.steps * config.ldm.batch
    assert changed.eval.interval == (0.0, 1.0)
    assert plain(changed) == PLAIN
    report = load("configs/report.yaml")
    rates = [
        (c.vae.learning_rate, c.ldm.learning_rate, c.ldm.steps) for c in (report, derive(report, [*plain(report)]))
    ]
    assert rates[0] == rates[1]


# one row of each kind: plain, guided by another network, another form, a borrowed section, shared trainings, distilled
KINDS = (
    *("ldm", "ldm-guided", "ldm-told-the-set", "gan", "gan-placed", "gan-body-residual"),
    *("ddpm-cosine", "ddpm-patches", "onestep"),
)
FEW = ("ldm", "ldm-guided", "gan")


@pytest.mark.parametrize("kinds", [FEW, pytest.param(KINDS, marks=pytest.mark.faults)], ids=["few", "all"])
def test_reproduce_runs_systems_and_only_what_is_missing(stage, root, kinds):
    """With two steps per training, the page has a row for each system, the reports' figures beside ours."""
    small = (f"root={root}", "ddpm.width=8", "ddpm.timesteps=12", "ddpm.batch=4", "eval.seeds=[0]", BATCH)
    status, said = stage("reproduce", "--steps", "2", "--only", *kinds, "--", *small)
    assert status == 0, said
    rows = json.loads((root / "reproduce/report.json").read_text())
    assert rows.keys() == set(kinds)
    assert rows["gan"]["reported"] == [0.527, 0.678]
    told = {key for key, row in rows.items() if "labels only, places chosen by the program" in row["system"]}
    assert {"ldm", "ldm-guided", "gan-placed", "ddpm-patches", "onestep"} & {*kinds} <= told
    assert "ldm-told-the-set" not in told
    for key, row in rows.items():
        results = json.loads((root / f"smoke-{key}/eval/report.json").read_text())["results"]
        assert row["figures"] == results[SYSTEMS[key].model]
        assert {"test", "new_test"} <= row["figures"].keys()
    assert "accuracy_by_the_guide" in rows["ldm-guided"]["figures"]["test"]
    assert "stages.experiments.reproduce" in (root / "reproduce/report.md").read_text()
    assert not (root / "smoke-gan-body-residual/gan").exists(), "it is the row gan: nothing is trained twice"
    status, said = stage("reproduce", "--steps", "2", "--only", "gan", "ldm-guided", "--", *small)
    assert status == 0 and "0 of 2 rows to run" in said, said


@pytest.mark.parametrize("experiment", ["smoke", "demo", "iclevr", "report", "gan-auxiliary", "gan-small"])
def test_every_system_is_a_valid_configuration_with_what_makes_it_that_row(experiment, tmp_path):
    """All rows derive; the test above trains only some of them."""
    config = load(f"configs/{experiment}.yaml", [f"root={tmp_path}"])
    arguments = Namespace(config="", steps=2, overrides=[], fresh=False, only=[])
    context = Context(config, torch.device("cpu"), torch.float32, arguments, 0.0, ExitStack())
    homes = homes_of(context)
    assert homes.keys() == SYSTEMS.keys()
    for key, system in SYSTEMS.items():
        row = context.derived(named(context, key), *changes_of(context, key)).config
        assert row.models == (system.model,)
        assert derive(row, list(system.changes)) == row, f"{key}: something overrides what defines the row"


def test_where_conditions_enter_is_a_choice_also_beside_patches():
    config = load("configs/ddpm-patches.yaml")
    for overrides in (
        *GROUPS["conditions"][1].values(),
        *(SYSTEMS[f"ddpm-{k}"].changes for k in ("multiply-add", "up")),
    ):
        assert derive(config, [*overrides]).ddpm.network == "multiply-add"


def test_a_row_says_where_a_model_knows_more_than_the_reports_did():
    config = load("configs/smoke.yaml")
    chosen = " (trained with places; asked by labels only, places chosen by the program)"
    assert (told_of(config, "ldm"), told_of(config, "gan"), told_of(config, "ddpm")) == (chosen, "", "")
    assert told_of(derive(config, ["eval.places=unknown"]), "ldm").endswith("places left open)")
    assert told_of(derive(config, [*SYSTEMS["gan-placed"].changes]), "gan") == chosen


@pytest.mark.parametrize("path", ["configs/report.yaml", "configs/scenes.yaml"])
def test_what_the_ldm_is_told_is_the_only_choice_also_beside_a_vector_and_turns(path):
    config = load(path)
    assert config.ldm.network.condition == "vector" or config.ldm.network.turns
    networks = [derive(config, overrides).ldm.network for overrides in GROUPS["told"][1].values()]
    alike = [network.model_copy(update={"order": False, "places": False, "turns": False}) for network in networks]
    assert alike[0] == alike[1] == alike[2] and len({(n.order, n.places) for n in networks}) == 3


def test_a_recipe_brings_its_sampler_s_clip(tmp_path):
    """The experiment's clip is for pictures, and patches are not pictures."""
    config = load("configs/smoke.yaml", [f"root={tmp_path}", "eval.sampler=ancestral", "eval.clip=1.0"])
    arguments = Namespace(config="", steps=2, overrides=[], fresh=False, only=[])
    context = Context(config, torch.device("cpu"), torch.float32, arguments, 0.0, ExitStack())
    assert context.derived("row", *changes_of(context, "ddpm-patches")).config.eval.clip is None


@pytest.mark.parametrize(("experiment", "change"), [("report", "seed=0"), ("smoke", "gan.attention=true")])
def test_every_gan_is_valid_beside_a_flattening_critic_and_beside_attention(experiment, change):
    config = load(f"configs/{experiment}.yaml", [change])
    for system in SYSTEMS.values():
        if system.model == "gan":
            derive(config, list(system.changes))
