"""A release holds an experiment in 16 bits: its hashes, parents and figures fit, and it draws nearly the same."""

import json
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stages import UserError, load
from stages.engine.config import load as config_of
from stages.engine.export import load_export, read_about, save_export
from stages.use import release
from stages.use.card import _drawn_otherwise, as_range, figures_of, write_card
from stages.use.find import FIGURES, MANIFEST, SHIPPED, SHIPPED_FROM, STAGES, refuse_tampered, sha256_of_file
from tests.conftest import HERE, SMOKE
from tests.helpers import assert_one_line
from tests.stages.handful import context_with


@pytest.fixture(scope="module")
def released(chain, tmp_path_factory):
    """The smoke experiment's release, named `given`. Tests must not change it."""
    to = tmp_path_factory.mktemp("released") / "given"
    arguments = Namespace(config=SMOKE, to=str(to), report=[])
    release.main(replace(context_with(f"root={chain}"), arguments=arguments))
    return to


def test_the_manifest_names_every_file(released):
    manifest = json.loads((released / MANIFEST).read_text())
    files = {str(p.relative_to(released)) for p in released.rglob("*") if p.is_file()}
    assert manifest.keys() == files - {MANIFEST}
    assert {"config.yaml", "README.md", "ldm/export.safetensors", "evaluator/export.safetensors"} <= files
    for name, of in manifest.items():
        assert of == {"sha256": sha256_of_file(released / name), "bytes": (released / name).stat().st_size}
    assert sum(of["bytes"] for of in manifest.values()) < release.LIMIT
    assert list(released.parent.iterdir()) == [released]  # nothing half-written is left


def test_matrices_have_16_bits_and_all_else_is_as_it_was(chain, released):
    for stage in ("evaluator", "reader", "vae", "ldm", "gan"):
        before, about = load_export(chain / "smoke" / stage / "export.safetensors", "")
        after, now = load_export(released / stage / "export.safetensors", "")
        assert before.keys() == after.keys()
        for name, values in after.items():
            if release.is_rounded(name, before[name]):
                assert values.dtype == torch.float16  # of weights this small it keeps more digits
                assert (values.float() - before[name]).abs().max() <= before[name].abs().max() / 1000
            else:
                assert values.dtype == before[name].dtype and torch.equal(values, before[name])
        assert now["rounded_from"] == about["sha256"] != now["sha256"]


def test_the_chain_of_parents_still_fits(chain, released):
    names = [stage for stage in STAGES if (released / stage).exists()]
    old, new = (
        {stage: read_about(root / stage / "export.safetensors", "") for stage in names}
        for root in (chain / "smoke", released)
    )
    assert new["ldm"]["parents"]["vae"] == new["ldm"]["identity"]["parent vae"] == new["vae"]["sha256"]
    hashes = {old[stage]["sha256"]: new[stage]["sha256"] for stage in names}
    for stage in names:
        expected = {name: hashes.get(value, value) for name, value in old[stage]["parents"].items()}
        assert new[stage]["parents"] == expected
        assert new[stage]["identity"]["parent data"] == old[stage]["identity"]["parent data"]


def test_the_card_has_the_figures_of_the_report(chain, released):
    card = (released / "README.md").read_text()
    report = json.loads((chain / "smoke/eval/report.json").read_text())
    for model in ("ldm", "gan"):
        for name in ("test", "new_test"):
            figures = report["results"][model][name]
            assert f"| {name} | {figures['accuracy']:.3f} ± {figures['std']:.3f} | " in card
            shares = figures["by_objects"].items()
            assert f" | {', '.join(f'{n}: {share:.3f}' for n, share in shares)} |" in card
    assert f"Accuracy on held-out pictures: {report['evaluator']['real_accuracy']:.3f}" in card
    for words in ("MIT", "Limits", "F16", "20 scenes", "make ldm CONFIG=configs/smoke.yaml", "Latent diffusion"):
        assert words in card
    assert "{" not in card and 'load("scenes")' not in card and "further judges" not in card
    assert f'--config "{released}/config.yaml"' in card and f'load("{released}")' in card
    assert f'`make release CONFIG=configs/smoke.yaml FLAGS="--to {released}"`' in card


def test_the_figures_for_programs_are_those_of_the_card(chain, released):
    figures = json.loads((released / FIGURES).read_text())
    report = json.loads((chain / "smoke/eval/report.json").read_text())
    assert figures.keys() == report["results"].keys()
    for model, of in figures.items():
        assert of["export"] == read_about(released / model / "export.safetensors", "")["sha256"]
        assert of["seeds"] == len(report["provenance"]["seeds"])
        assert of["measured"] == report["provenance"]["parents"][model]
        assert of["sets"].keys() >= {"test", "new_test"}
        for name, shown in of["sets"].items():
            assert shown == {key: report["results"][model][name][key] for key in ("accuracy", "std")}


def test_of_several_reports_a_model_s_figures_are_of_the_first_that_has_them():
    def report(seeds, **accuracies):
        results = {model: {"test": {"accuracy": a, "std": 0.1}, "held_out": {}} for model, a in accuracies.items()}
        return {"results": results, "seeds": seeds, "parents": {model: f"{model} before" for model in accuracies}}

    reports = [report([0, 1], ldm=0.9), report([0, 1, 2], ldm=0.8, gan=0.7, ddpm=0.6)]
    found = figures_of(reports, {"ldm": "ldm after", "gan": "gan after"})
    ldm, gan = ({"test": {"accuracy": a, "std": 0.1}} for a in (0.9, 0.7))
    assert found == {
        "ldm": {"export": "ldm after", "measured": "ldm before", "seeds": 2, "sets": ldm},
        "gan": {"export": "gan after", "measured": "gan before", "seeds": 3, "sets": gan},
    }


@pytest.mark.parametrize(
    ("numbers", "words"), [([0, 1, 2], "0 to 2"), ([3, 7, 9], "3, 7, 9"), ([0, 2, 1], "0, 2, 1"), ([4], "4")]
)
def test_seeds_are_a_range_only_in_a_row(numbers, words):
    assert as_range(numbers) == words


def card_of(chain, folder, report, to="checkpoints/scenes"):
    """The card with figures of one more report, for made-up hashes."""
    path = folder / "report.json"
    path.write_text(json.dumps(report))
    arguments = Namespace(config=SMOKE, to=to, report=[str(path)], overrides=[f"root={folder}", "seed=0"])
    about = {"steps": 3, "seconds": 60, "device": None}
    context = replace(context_with(f"root={folder}"), arguments=arguments)
    hashes = {"ldm": ("before", "after"), "vae": ("v", "v")}
    write_card(context, folder, {"ldm": about, "vae": about}, hashes, torch.float16, {torch.float16: 0.001})
    return (folder / "README.md").read_text()


def of_others(chain):
    """A report as of two further judges, and with a file of four and five objects."""
    report = json.loads((chain / "smoke/eval/report.json").read_text())
    report["provenance"] |= {"experiment": "other", "parents": {"ldm": "after", "vae": "v", "evaluator": "x"}}
    report["other_judges"] = {"judge1": 0.971, "judge2": 0.982}
    report["vae"]["reconstruction_accuracy_by_judge1"] = 0.913
    of_ldm = report["results"]["ldm"]
    of_ldm["more"] = {"accuracy": 0.8, "std": 0.01, "per_seed": [0.8], "by_objects": {"4": 0.833, "5": 0.766}}
    for figures in (of_ldm["test"], of_ldm["more"]):
        figures["by_other_judges"] = {
            "accuracy": 0.9,
            "per_judge": {"judge1": 0.911, "judge2": 0.887},
            "agreement": 0.94,
        }
    return report


def test_the_card_shows_further_judges_and_how_to_make_it_again(chain, tmp_path):
    card = card_of(chain, tmp_path, of_others(chain))  # of an experiment without the configuration's gan
    assert "by other's judge" in card and "by 2 further judges that nothing was chosen by (0.971, 0.982)" in card
    assert "| more | 0.800 ± 0.010 | 4: 0.833, 5: 0.766 | 0.911, 0.887 | 0.940 |" in card
    assert "- Further judge 1 reads 0.913 and 0.971." in card and card.count("- Further judge") == 1
    assert "|  | – |" in card  # new_test, of which they were not asked
    assert "of these weights" in card and "before rounding" not in card
    assert "    make sample LABELS=" in card and 'load("scenes")' in card
    again = 'CONFIG=configs/smoke.yaml SET="seed=0 models=[ldm]"'
    flags = 'FLAGS="--to checkpoints/scenes --report checkpoints/report.json"'
    assert f"`make ldm eval {again}`, then `make release {again} {flags}`" in card and str(tmp_path) not in card
    own = of_others(chain)
    own["provenance"] |= {"experiment": "smoke", "parents": {"ldm": "after", "vae": "v"}}
    assert "`make ldm judges eval CONFIG" in card_of(chain, tmp_path, own)  # its further judges are of its own
    own["provenance"]["parents"] = {"ldm": "before", "vae": "v"}
    card = card_of(chain, tmp_path, own)
    assert "of the weights before rounding" in card and "(before rounding)" not in card  # that of the autoencoder


def test_the_card_says_with_which_other_settings_pairs_were_drawn():
    config = config_of(HERE / "configs/scenes.yaml")
    identity = {"onestep.steps": 3, "parent eval.steps": config.eval.steps, "parent eval.interval": [0.4, 0.9]}
    assert _drawn_otherwise({"identity": identity}, config) == "eval.interval=[0.4,0.9]"
    now = config.eval.model_dump(mode="json")["interval"]
    assert _drawn_otherwise({"identity": identity | {"parent eval.interval": now}}, config) == ""
    assert _drawn_otherwise({}, config) == ""


@pytest.mark.parametrize(
    ("parents", "words"),
    [
        ({"ldm": "of an earlier one", "vae": "v"}, "measured another ldm than the one in"),
        ({"vae": "v"}, "measured another ldm"),
        ({"ldm": "before", "vae": "an earlier one"}, "measured another vae"),
    ],
)
def test_figures_of_other_weights_are_refused(chain, tmp_path, parents, words):
    report = of_others(chain)
    report["provenance"]["parents"] = parents
    with pytest.raises(UserError, match=words):
        card_of(chain, tmp_path, report)
    report["provenance"]["parents"], report["results"], report["vae"] = {}, {"ddpm": {}}, None
    with pytest.raises(UserError, match="measured none of ldm, vae"):
        card_of(chain, tmp_path, report)


@pytest.mark.parametrize(
    "other",
    [
        {"vae": {"psnr": 39.0}},
        {"evaluator": {"real_accuracy": "high"}},
        {"results": {"ldm": {"test": 3}}},
        {"results": {"ldm": {"test": {"accuracy": 0.5, "by_objects": {}}}}},
    ],
)
def test_a_report_without_its_figures_is_refused_in_one_line(tmp_path, other):
    of_test = {"accuracy": 0.5, "std": 0.1, "by_objects": {}}
    report = {
        "provenance": {"experiment": "other", "date": "", "seeds": [0], "parents": {"ldm": "after", "vae": "v"}},
        "evaluator": {"real_accuracy": 0.9},
        "results": {"ldm": {"test": of_test}},
    }
    assert "| test | 0.500 ± 0.100 |" in card_of(None, tmp_path, report)
    with pytest.raises(UserError, match=r"report\.json: a figure is missing or no number") as raised:
        card_of(None, tmp_path, report | other)
    assert "\n" not in str(raised.value)


def test_a_report_of_before_the_last_training_is_refused(chain_copy, tmp_path):
    path = chain_copy / "smoke/gan/export.safetensors"
    tensors, about = load_export(path, "")
    save_export(path, {name: values * 2 for name, values in tensors.items()}, about)
    arguments = Namespace(config=SMOKE, to=str(tmp_path / "new"), report=[])
    with pytest.raises(UserError, match=r"report\.json measured another gan .*make eval CONFIG"):
        release.main(replace(context_with(f"root={chain_copy}"), arguments=arguments))
    assert not list(tmp_path.glob("*new*"))


def test_only_their_own_experiment_replaces_the_weights_in_the_box(stage):
    assert config_of(HERE / "configs/scenes.yaml").name == SHIPPED_FROM
    for to in (SHIPPED, HERE / SHIPPED, HERE / "configs/../checkpoints/scenes"):
        for experiment in (SMOKE, "configs/demo.yaml"):
            said = stage("release", "--to", str(to), "--check", config=experiment)
            assert_one_line(*said, f"weights of {SHIPPED_FROM}", "name another folder")
    assert_one_line(*stage("release", "--check"), "name the folder to write with --to")
    said = stage("release", "--to", str(SHIPPED), "--check", "root=nowhere", config="configs/scenes.yaml")
    assert_one_line(*said, "has no evaluator yet")


def test_the_recipe_of_the_weights_in_the_box_is_still_that_of_their_configuration():
    """Their card names configs/scenes.yaml, which extends the demo's: a change there must not reach it."""
    recipe, shipped = config_of(HERE / "configs/scenes.yaml"), config_of(HERE / SHIPPED / "config.yaml")
    assert recipe.model_dump(exclude={"name"}) == shipped.model_dump(exclude={"name"})


def test_it_draws_nearly_the_same(chain, released):
    whole, short = load(chain / "smoke"), load(released)
    assert short.models == whole.models and short.objects == whole.objects
    for model in whole.models:
        wanted, drawn = (e.sample("red cube, cyan sphere", count=4, model=model) for e in (whole, short))
        assert drawn.dtype == torch.float32
        assert 0 < (drawn - wanted).abs().mean() < 0.02
    pictures = whole.draw("red cube", count=2)
    scores = [[row[0].score for row in e.judge(pictures, "red cube")] for e in (whole, short)]
    assert scores[0] == pytest.approx(scores[1], abs=0.01)


def test_the_command_draws_from_it_and_trains_nothing_in_it(stage, released, tmp_path):
    out, config = tmp_path / "x", released / "config.yaml"
    out.mkdir()
    arguments = ("--labels", "red cube", "--count", "1", "--out", str(out))
    assert stage("sample", *arguments, config=config)[0] == 0
    assert (out / "00.png").is_file()
    assert_one_line(*stage("ldm", "--fresh", config=config), "nothing is trained there", "name=")
    assert_one_line(*stage("ddpm", config=config), "nothing is trained there", "name=")
    for name in ("evaluator", "vae", "gan"):
        said = stage(name, "--check", f"name={SHIPPED.name}", f"root={SHIPPED.parent}", "--fresh")
        assert_one_line(*said, "checkpoints/scenes holds released weights")
    assert stage("vae", "--check", "name=mine", "root=checkpoints") == (0, "")


def test_a_model_that_is_not_in_a_release_is_refused_without_a_command_to_train_it(stage, released, tmp_path):
    asked = ("--labels", "red cube", "--model", "ddpm", "--out", str(tmp_path / "x.png"))
    said = stage("sample", *asked, config=released / "config.yaml")
    assert_one_line(*said, "has no such model; choose from ldm, gan")
    with pytest.raises(UserError, match="has no such model; choose from ldm, gan"):
        load(released, model="ddpm")


@pytest.mark.parametrize("how", ["flipped", "replaced", "missing", "manifest"])
def test_a_file_that_is_not_the_released_one_is_refused(stage, released, tmp_path, how):
    copy = tmp_path / "given"
    shutil.copytree(released, copy)
    path = copy / "ldm/export.safetensors"
    if how == "flipped":
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.write_bytes(content)
    elif how == "replaced":  # a whole file, with right hashes of its own
        tensors, about = load_export(path, "")
        del about["sha256"]
        save_export(path, {name: values * 2 for name, values in tensors.items()}, about)
    elif how == "missing":
        path.unlink()
    else:
        (copy / MANIFEST).write_text('{"ldm/export.safetensors": 3}')
    named = copy / MANIFEST if how == "manifest" else path
    with pytest.raises(UserError) as caught:
        load(copy)
    assert f"git checkout {named}" in str(caught.value)
    asked = ("--labels", "red cube", "--out", str(tmp_path / "x.png"), f"root={tmp_path}")  # it names its first place
    said = stage("sample", *asked, config=copy / "config.yaml")
    assert_one_line(*said, str(named))


def test_what_is_not_released(stage, chain, tmp_path):
    def refused(*arguments, to=tmp_path / "new"):
        status, said = stage("release", "--to", str(to), f"root={chain}", *arguments)
        assert not (tmp_path / "new").exists()
        return status, said

    data = chain / "smoke/render"
    assert_one_line(*refused(f"data.folder={data}"), "only models of scenes drawn here are released")
    assert_one_line(*refused("name=other"), "has no evaluator yet", "make evaluator")
    assert_one_line(*refused(to=chain / "smoke"), "another folder than the experiment's")
    (tmp_path / "full").mkdir()
    assert_one_line(*refused(to=tmp_path / "full"), "is not a release")
    assert_one_line(*refused("--report", str(tmp_path / "no.json")), "no.json is missing")
    (tmp_path / "no.json").write_text("{}")
    assert_one_line(*refused("--report", str(tmp_path / "no.json")), "is not a report.json of `make eval`")


def test_more_than_the_limit_is_refused(chain, tmp_path, monkeypatch):
    monkeypatch.setattr(release, "LIMIT", 2**20)
    arguments = Namespace(config=SMOKE, to=str(tmp_path / "new"), report=[])
    with pytest.raises(UserError, match="more than the 1 MiB that a clone may carry"):
        release.main(replace(context_with(f"root={chain}"), arguments=arguments))
    assert not list(tmp_path.iterdir())


def test_models_of_other_pictures_are_not_released(chain_copy, tmp_path):
    path = chain_copy / "smoke/vae/export.safetensors"
    tensors, about = load_export(path, "")
    del about["sha256"], about["identity"]["parent scenes"]  # only of scenes drawn here it has one
    save_export(path, tensors, about)
    arguments = Namespace(config=SMOKE, to=str(tmp_path / "new"), report=[])
    with pytest.raises(UserError, match="data that are not drawn here"):
        release.main(replace(context_with(f"root={chain_copy}"), arguments=arguments))


def test_models_of_the_same_scenes_are_released_together_whatever_processors_drew_them(chain_copy):
    context = replace(context_with(f"root={chain_copy}"), arguments=Namespace(config=SMOKE, to="x", report=[]))
    path = chain_copy / "smoke/vae/export.safetensors"

    def made_from(**parents):
        tensors, about = load_export(path, "")
        about["identity"] |= {f"parent {name}": value for name, value in parents.items()}
        save_export(path, tensors, {key: value for key, value in about.items() if key != "sha256"})
        return release.read_exports(context)

    assert "vae" in made_from(data="other bits")
    with pytest.raises(UserError, match="different pictures"):
        made_from(data="other bits", scenes="others")
    smaller = replace(context_with(f"root={chain_copy}", "data.size=32"), arguments=context.arguments)
    with pytest.raises(UserError, match=r"is of 64x64 pictures, but data\.size is 32"):
        release.read_exports(smaller)


def test_what_is_rounded_already_stays_as_it_is(released):
    exports = {"vae": load_export(released / "vae/export.safetensors", "")}
    tensors, about = release.rounded(exports, torch.float16)["vae"]
    assert about | {"sha256": exports["vae"][1]["sha256"]} == exports["vae"][1]
    assert all(torch.equal(values, exports["vae"][0][name]) for name, values in tensors.items())


def test_every_hash_of_a_parent_is_replaced_and_nothing_else():
    """As of a model whose parents are others too, and the settings it was made with."""
    weights = {"w": torch.randn(2, 2), "layouts.1": torch.rand(3, 2)}
    about = {"sha256": "old vae", "identity": {"seed": 0}, "parents": {"data": "d"}}
    child = {"sha256": "old x", "parents": {"vae": "old vae", "guide": "of another", "eval.seeds": [0, 1]}}
    made = release.rounded(
        {"vae": (weights, about), "x": (weights, child | {"identity": {"parent vae": "old vae"}})}, torch.float16
    )
    new = release.sha256_of(made["vae"][0])
    assert made["x"][1]["parents"] == {"vae": new, "guide": "of another", "eval.seeds": [0, 1]}
    assert made["x"][1]["identity"] == {"parent vae": new} and made["vae"][1]["parents"] == {"data": "d"}
    assert torch.equal(made["x"][0]["layouts.1"], weights["layouts.1"])


def test_the_type_that_loses_less_is_chosen():
    small = {"vae": ({"a": torch.randn(4, 4) * 1e-3}, {})}
    assert release.rounding_error(small, torch.float16) < release.rounding_error(small, torch.bfloat16) < 0.01
    large = {"vae": ({"a": torch.full((2, 2), 1e6)}, {})}
    assert release.rounding_error(large, torch.bfloat16) < 0.01 < release.rounding_error(large, torch.float16)


def test_the_weights_in_the_box():
    """What this repository ships: whole, small, and it draws."""
    folder = HERE / SHIPPED
    assert (folder / MANIFEST).is_file(), f"{SHIPPED} has no weights: `git checkout {SHIPPED}` restores them"
    refuse_tampered(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert sum(of["bytes"] for of in manifest.values()) <= release.LIMIT
    exports = {str(path.relative_to(folder)) for path in Path(folder).rglob("export.safetensors")}
    assert exports <= manifest.keys() and {"README.md", "config.yaml"} <= manifest.keys()
    model = load("scenes", device="cpu")
    for name in model.models:
        (picture,) = model.draw("red cube, cyan sphere", count=1, batch=1, model=name)
        assert picture.size == (model.size, model.size)
