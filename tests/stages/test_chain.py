"""Runs the whole chain through Make on the smoke configuration; checks the contract that other programs rely on."""

import json
import shlex
import shutil
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from data.images import to_unit
from stages.engine.export import load_export
from stages.engine.report import write_report
from stages.evaluate import play_command
from tests.conftest import HERE, SMOKE, ask_for_few, commands_of, make
from tests.data.folder import write_folder
from tests.stages.handful import context_with

EXPERIMENTS = (
    "placed",
    "places",
    "gradnorm",
    "progress",
    "samplers",
    "ablations",
    "compare",
    "held-out",
    "reproduce",
    "pace",
)


@pytest.fixture(scope="module")
def report(chain):
    return json.loads((chain / "smoke/eval/report.json").read_text())


def test_exports_and_runs_are_where_the_contract_says(chain):
    for stage in ("evaluator", "reader", "vae", "ldm", "gan"):
        folder = chain / "smoke" / stage
        for name in ("export.safetensors", "config.yaml", "metrics.jsonl", "tensorboard"):
            assert (folder / name).exists(), f"{stage}/{name}"
    for stage in ("vae", "ldm", "gan"):
        assert list((chain / "smoke" / stage / "previews").glob("*.png"))


def test_report_json_keeps_the_contract(report):
    assert report["evaluator"]["kind"] == "trained"
    assert 0 <= report["evaluator"]["real_accuracy"] <= 1
    for model in ("ldm", "gan"):
        for name in ("test", "new_test"):
            figures = report["results"][model][name]
            assert len(figures["per_seed"]) == 2
            assert figures["accuracy"] == pytest.approx(sum(figures["per_seed"]) / 2)
            assert figures["std"] == pytest.approx(np.std(figures["per_seed"], ddof=1))
            assert figures["images_per_second"] > 0
            assert set(figures["by_objects"]) == ({"1", "2", "3"} if name == "test" else {"2", "3"})
    assert {"reconstruction_accuracy", "psnr", "codebook_perplexity"} <= report["vae"].keys()
    provenance = report["provenance"]
    assert {"configuration_sha256", "data_sha256", "parents", "versions", "device", "seconds"} <= provenance.keys()
    assert provenance["seconds"].keys() == {"evaluator", "reader", "vae", "ldm", "gan", "evaluate"}


def test_held_out_figures_are_beside_the_readers(report, chain):
    """The smoke LDM takes places; its GAN has only the accuracy by names and the errors of counts."""
    own = report["reader"]
    assert own["pictures"] > 0 and 0 <= own["accuracy"] <= 1 and 0 <= own["not_found"] <= 1
    keys = {"placement_error_pixels", "placement_error_95", "not_found", "too_many", "too_few"}
    for model in ("ldm", "gan"):
        held_out = report["results"][model]["held_out"]
        assert held_out.keys() == keys | {"accuracy_given", "accuracy_chosen"} and keys <= own.keys()
        assert 0 <= held_out["accuracy_chosen"] <= 1
        assert 0 <= held_out["too_many"] + held_out["too_few"] <= 1
    assert 0 <= report["results"]["ldm"]["held_out"]["accuracy_given"] <= 1
    assert 0 <= report["results"]["ldm"]["held_out"]["not_found"] <= 1
    unplaced = report["results"]["gan"]["held_out"]
    assert unplaced["accuracy_given"] is unplaced["placement_error_pixels"] is unplaced["not_found"] is None
    assert report["provenance"]["parents"]["reader"]
    for file in ("report.md", "report.html"):
        text = (chain / "smoke/eval" / file).read_text()
        assert "the real pictures" in text and "mean of those found" in text and "1 − not found" in text


def test_accuracy_by_objects_adds_up_to_the_whole(report, chain):
    sets = {name: json.loads((chain / "smoke/render" / f"{name}.json").read_text()) for name in ("test", "new_test")}
    for model in ("ldm", "gan"):
        for name, conditions in sets.items():
            figures = report["results"][model][name]
            labels = {str(n): n * sum(len(c) == n for c in conditions) for n in (1, 2, 3)}
            hits = sum(share * labels[n] for n, share in figures["by_objects"].items())
            assert hits / sum(labels.values()) == pytest.approx(figures["accuracy"], abs=1e-6)


def test_the_page_is_self_contained_and_the_pictures_are_there(chain):
    folder = chain / "smoke/eval"
    page = (folder / "report.html").read_text()
    assert 'src="data:image/png' in page
    assert "http://" not in page and "https://" not in page
    for name in ("ldm-test", "ldm-new_test", "gan-test", "gan-new_test", "denoising"):
        assert Image.open(folder / f"{name}.png").width > 100
    assert "held-out pictures (the ceiling)" in (folder / "report.md").read_text()


def test_exports_name_their_parents(chain, report):
    for stage in ("ldm",):
        with safe_open(chain / "smoke" / stage / "export.safetensors", "pt") as file:
            about = json.loads(file.metadata()["about"])
        assert about["parents"]["vae"] == report["provenance"]["parents"]["vae"]
        assert about["parents"]["data"] == report["provenance"]["data_sha256"]


def test_report_json_is_enough_to_train_the_same_model_again(stage, report, chain, tmp_path):
    """The configuration in it, run in another folder, gives the LDM whose sha256 it names."""
    provenance = report["provenance"]
    path = tmp_path / "again.yaml"
    path.write_text(json.dumps(provenance["configuration"] | {"root": str(tmp_path)}))
    for made in ("render", "evaluator", "vae"):  # the parents, whose hashes the report names too
        shutil.copytree(chain / "smoke" / made, tmp_path / "smoke" / made)
    status, said = stage("ldm", config=path)
    assert status == 0, said
    _, about = load_export(tmp_path / "smoke/ldm/export.safetensors", "")
    assert about["sha256"] == provenance["parents"]["ldm"]
    assert provenance["made_with"]["ldm"] == {"device": about["device"], "versions": about["versions"]}


def test_a_finished_chain_returns_at_once_and_changes_nothing(stage, chain):
    def seen():
        return {p: p.stat().st_mtime_ns for p in chain.rglob("*") if p.is_file() and p.suffix != ".lock"}

    files, finished = seen(), 0
    for command in commands_of("eval", f"CONFIG={SMOKE}", f"SET=root={chain}"):
        status, said = stage(*command)
        assert status == 0, said
        finished += said.count("finished already")
    assert finished >= 6
    assert seen() == files


def test_the_gan_alone_needs_no_autoencoder(stage, chain_copy):
    for name in ("vae", "ldm", "gan", "eval"):
        (chain_copy / "smoke" / name).rename(chain_copy / f"gone-{name}")
    for command in commands_of("gan", f"CONFIG={SMOKE}", f"SET=root={chain_copy} gan.steps=1"):
        status, said = stage(*command)
        assert status == 0, said
    assert (chain_copy / "smoke/gan/export.safetensors").exists()
    assert not (chain_copy / "smoke/vae").exists()


def test_a_data_folder_through_make_draws_nothing(stage, chain, tmp_path):
    settings = (f"DATA={chain / 'smoke/render'}", f"SET=root={tmp_path} evaluator.steps=1")
    all_said = ""
    for command in commands_of("evaluator", f"CONFIG={SMOKE}", *settings):
        status, said = stage(*command)
        assert status == 0, said
        all_said += said
    assert "nothing to draw" in all_said
    assert (tmp_path / "smoke/evaluator/export.safetensors").exists()
    assert not (tmp_path / "smoke/render").exists()


@pytest.mark.parametrize("command", ["evaluate", "samplers", "progress", "compare", "held_out"])
def test_another_data_folder_is_refused_by_what_judges(stage, chain, tmp_path, command):
    other = write_folder(tmp_path / "d")
    status, said = stage(command, f"root={chain}", f"data.folder={other}", "data.validation_every=3")
    assert status == 2
    assert "made from other pictures" in said


def test_the_gan_on_latents_is_decoded_and_evaluated(stage, chain_copy):
    (chain_copy / "smoke/gan").rename(chain_copy / "gone")
    ask_for_few(chain_copy / "smoke/render", 2)
    sets = (
        "gan.space=latents",
        "gan.generator.channels=[8,8,8]",
        "gan.critic.channels=[8,8,8]",
        "gan.steps=2",
        "eval.batch=2",
    )
    for name in ("gan", "evaluate"):
        status, said = stage(name, f"root={chain_copy}", *sets)
        assert status == 0, said
    assert "old report is now" in said


def test_make_sample_draws_what_is_asked(stage, chain, tmp_path):
    out = tmp_path / "x.png"
    asked = (f"SET=root={chain}", f"OUT={out}", "LABELS=red cube, cyan sphere", "COUNT=3")
    for command in commands_of("sample", f"CONFIG={SMOKE}", *asked):
        status, said = stage(*command)
        assert status == 0, said
    assert Image.open(out).size == (3 * 66 * 2, 66 * 2)


@pytest.mark.parametrize("model", ["ldm", "gan"])
def test_a_sample_does_not_depend_on_its_batch(stage, chain, tmp_path, model):
    def first_of(count):
        out = tmp_path / f"{count}.png"
        arguments = ("--labels", "red cube", "--count", str(count), "--seed", "3", "--out", str(out), "--model", model)
        status, said = stage("sample", *arguments, f"root={chain}")
        assert status == 0, said
        return Image.open(out).crop((0, 0, 128, 128)).tobytes()

    assert first_of(1) == first_of(8) == first_of(9)


def test_make_help_lists_every_target():
    said = make("help").stdout
    stages = ("scenes", "evaluator", "reader", "vae", "ldm", "gan", "eval")
    for target in ("setup", "demo", *stages, "sample", "bench", "test"):
        assert f"\n  {target} " in said
    for target in EXPERIMENTS:
        assert f"\n  {target} " in said


@pytest.mark.parametrize("target", EXPERIMENTS)
def test_make_gives_an_experiment_its_configuration_flags_and_settings(target):
    result = make(target, "-n", "CONFIG=configs/smoke.yaml", "FLAGS=--fresh", "SET=seed=3", "DATA=/d")
    assert result.returncode == 0, result.stderr
    command = next(
        line for line in result.stdout.splitlines() if f"-m stages.experiments.{target.replace('-', '_')} " in line
    )
    assert '--config "configs/smoke.yaml"' in command and "--fresh" in command.split(" -- ")[0]
    assert command.split(" -- ")[1].split() == ['"data.folder=/d"', "seed=3"]


def test_make_takes_the_models_of_the_configuration():
    for target in ("samplers", "progress"):
        said = make(target, "-n", "CONFIG=configs/ddpm-small.yaml").stdout
        assert "-m stages.ddpm " in said and "-m stages.vae " not in said
        assert "-m stages.ldm " in make(target, "-n", "CONFIG=configs/gan-auxiliary.yaml").stdout
        said = make(target, "-n", "CONFIG=configs/demo.yaml", "MODEL=ddpm").stdout
        assert "-m stages.ddpm " in said and "--model ddpm" in said
    said = make("sample", "-n", "CONFIG=configs/gan-auxiliary.yaml").stdout
    assert "-m stages.gan " in said and "-m stages.ldm " not in said


def test_make_reads_models_as_the_program_does(tmp_path):
    """Any form of YAML works, also in what it extends; named targets come first, once, with their FRESH."""
    (tmp_path / "base.yaml").write_text((HERE / SMOKE).read_text() + "models:\n- 'gan'\n- ldm  # as well\n")
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: base.yaml  # mine\n")

    def stages_of(*arguments: str) -> list[str]:
        said = make("-n", f"CONFIG={mine}", *arguments).stdout.splitlines()
        return [line.split("-m stages.")[1] for line in said if "-m stages." in line and "engine" not in line]

    order = [line.split()[0] for line in stages_of("eval")]
    assert order.index("gan") < order.index("ldm") < order.index("evaluate") == len(order) - 1
    fresh = stages_of("ldm", "eval", "FRESH=1")
    trained = [line for line in fresh if line.startswith(("ldm ", "gan "))]
    assert ["--fresh" in line for line in trained] == [True, False]
    assert [line.split()[0] for line in trained] == ["ldm", "gan"]
    assert "ddpm" not in "".join(stages_of("eval"))
    for goal, verb in (("eval", "evaluate"), ("sample", "use.sample")):
        named = [line.split(" -- ")[0] for line in stages_of(goal, "vae", "FRESH=1")]
        fresh = next(i for i, line in enumerate(named) if line.startswith("vae ") and "--fresh" in line)
        assert named[-1].startswith(verb) and fresh == min(i for i, line in enumerate(named) if line.startswith("vae "))
    mine.write_text("extends: mine.yaml\n")
    said = make("eval", f"CONFIG={mine}")
    assert said.returncode == 2 and "circle" in said.stderr


def test_make_trains_an_autoencoder_for_a_gan_on_latents_alone():
    for config, wanted in (("demo", True), ("gan-auxiliary", False)):
        result = make("gradnorm", "-n", f"CONFIG=configs/{config}.yaml")
        assert result.returncode == 0, result.stderr
        assert ("-m stages.vae " in result.stdout) == wanted


@pytest.mark.parametrize(
    "name", ["render", "evaluator", "reader", "vae", "ldm", "gan", "onestep", "evaluate", "sample", "bench"]
)
def test_help_explains(stage, name):
    status, said = stage(name, "--help")
    assert status == 0
    assert "--config" in said
    assert "section.key=value" in said


def test_the_lock_names_no_index():
    text = (HERE / "requirements.lock").read_text()
    assert "--index-url" not in text and "http" not in text
    assert "--hash=sha256:" in text


VIEW = {"reported": {}, "titles": {"ldm": "LDM", "gan": "GAN"}, "counts": ["1"]}
VIEW |= {"samples": {}, "strip": None, "strip_labels": "", "curves": [], "facts": []}


@pytest.mark.parametrize(
    ("quantizer", "words"),
    [("codebook", "codebook perplexity 20 of 32 codes, 91 % of them in use."), ("fsq", "29 different codes (fsq)")],
)
def test_only_a_codebook_has_a_share_of_codes_in_use(report, tmp_path, quantizer, words):
    result = json.loads(json.dumps(report))
    assert result["vae"]["quantizer"] == "codebook"
    figures = {"codebook_perplexity": 20.2, "codebook_use": 0.91, "codes_in_use": 29}
    result["vae"] |= figures | {"quantizer": quantizer}
    write_report(tmp_path, result, VIEW)
    for suffix in ("md", "html"):
        text = (tmp_path / f"report.{suffix}").read_text()
        assert words in text and ("in use" in text) == (quantizer == "codebook")


def test_a_report_shows_what_further_judges_read_from_reconstructions(report, tmp_path):
    result = json.loads(json.dumps(report))
    write_report(tmp_path, result, VIEW)
    assert "further judges, on" not in (tmp_path / "report.md").read_text()
    result["other_judges"] = {"judge1": 0.971, "judge2": 0.982}
    result["vae"] |= {"reconstruction_accuracy_by_judge1": 0.911, "reconstruction_accuracy_by_judge2": 0.922}
    write_report(tmp_path, result, VIEW)
    for suffix in ("md", "html"):
        assert "(further judges, on reconstructions: 0.911, 0.922)" in (tmp_path / f"report.{suffix}").read_text()


def test_nothing_a_user_names_becomes_markup(report, tmp_path):
    result = json.loads(json.dumps(report))
    result["evaluator"]["words"] = "<script>alert(1)</script>"
    write_report(tmp_path, result, VIEW | {"reported": {"ldm": {"test": 0.819}}, "facts": [("<i>", "&")]})
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page and "<i>" not in page
    assert "&lt;script&gt;" in page


def test_the_page_ends_with_the_command_that_serves_its_models(chain):
    command = f"make play CONFIG={SMOKE} SET=root="
    last = (chain / "smoke/eval/report.md").read_text().rstrip().splitlines()[-1]
    assert last.startswith(f"Play with these models: `{command}/") and last.endswith("`")
    assert f"<p>Play with these models: <code>{command}/" in (chain / "smoke/eval/report.html").read_text()


@pytest.mark.parametrize(
    "overrides", [[], ["name=mine"], ["root=/tmp/x", "eval.steps=2"], ["root=it's $HOME", "models=[ldm, gan]"]]
)
def test_that_command_tells_the_page_to_play_what_the_evaluation_was_told(overrides):
    context = replace(context_with(), arguments=Namespace(config=SMOKE, overrides=overrides))
    program, *arguments = shlex.split(play_command(context))
    result = make("-n", *arguments)
    (line,) = [line for line in result.stdout.splitlines() if " -m stages.play " in line]
    assert program == "make"
    assert shlex.split(line.split(" -m stages.play ")[1]) == ["--config", SMOKE, "--", *overrides]
    assert play_command(context.derived("variant")) is None


def test_the_export_carries_the_latents_own_mean_and_deviation(chain):
    """The whole set, encoded with them, has mean 0 and deviation 1 in every channel."""
    from stages.engine.config import load
    from stages.engine.export import load_export, read_about
    from stages.vae import build_vae

    data = read_about(chain / "smoke/vae/export.safetensors", "")["parents"]["data"]
    packs = [p for p in (chain / "packs").glob("*.safetensors") if read_about(p, "")["pictures_sha256"] == data]
    tensors, _ = load_export(packs[0], "")
    vae = build_vae(load(HERE / SMOKE).vae).eval()
    vae.load_state_dict(load_export(chain / "smoke/vae/export.safetensors", "")[0])
    with torch.no_grad():
        latents = vae.encode(to_unit(tensors["images"][~tensors["held_out"]]))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(6), atol=0.02, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(6), atol=0.02, rtol=0)


@pytest.mark.parametrize("change", ["ldm.timestep_draws=uniform", "ldm.network.self_condition=true"])
def test_other_choices_of_the_ldm_train_and_sample(stage, chain_copy, tmp_path, change):
    ask_for_few(chain_copy / "smoke/render", 2)
    arguments = (f"root={chain_copy}", change, "eval.eta=0.5", "eval.seeds=[0]", "eval.batch=2")
    assert stage("ldm", "--fresh", *arguments)[0] == 0
    status, said = stage("evaluate", *arguments)
    assert status == 0, said
    out = tmp_path / "a.png"
    assert stage("sample", *arguments, "--labels", "red cube", "--count", "2", "--out", str(out))[0] == 0
    assert np.asarray(Image.open(out)).std() > 0
