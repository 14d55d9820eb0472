"""Bad inputs to the commands give exit status 2 and one line that names what and where, and change nothing."""

import hashlib
import json
import os
import pickle
import shutil

import pytest
import torch

from stages.engine.arguments import make_command
from stages.engine.export import load_export, save_export
from stages.engine.lock import locked
from stages.engine.machine import peak_memory, reset_peak
from tests.data.folder import write_folder
from tests.helpers import Hostile, assert_one_line


@pytest.mark.parametrize(
    ("name", "arguments", "parts"),
    [
        ("vae", ["vae.stepz=3"], ["vae.stepz", "did you mean steps?"]),
        ("ldm", ["ldm.steps=much"], ["ldm.steps"]),
        ("gan", ["nonsense"], ["section.key=value"]),
        ("vae", ["data.folder=/nowhere"], ["/nowhere", "no such data folder"]),
        ("vae", ["root="], ["root should not be empty"]),
        ("vae", ["name=packs"], ["'packs'", "name=mine"]),
        ("gan", ["models=gan"], ["models should be a list, such as [gan]"]),
        ("render", ["evaluator.checkpoint=/no.pth"], ["evaluator.checkpoint: /no.pth is missing"]),
        ("vae", ["vae.perceptual.weight=1", "vae.perceptual.weights=/no.pth"], ["weights: /no.pth is missing"]),
        ("ddpm", ["ddpm.label_dropout=0"], ["guidance 2 needs ddpm.label_dropout above 0"]),
    ],
)
def test_configuration_faults(stage, tmp_path, name, arguments, parts):
    assert_one_line(*stage(name, f"root={tmp_path}", *arguments), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("evaluator", ["no scenes yet", "stages.render"]),
        ("vae", ["no scenes yet"]),
        ("sample", ["ldm/export.safetensors is missing", "make ldm"]),
        ("evaluate", ["evaluator/export.safetensors is missing", "make evaluator"]),
    ],
)
def test_stages_before_their_parents(stage, tmp_path, name, parts):
    arguments = ["--labels", "red cube"] if name == "sample" else []
    status, said = stage(name, f"root={tmp_path}", *arguments)
    assert_one_line(status, said, *parts)
    assert "warning" not in said


@pytest.mark.parametrize("arguments", [["--frsh"], ["--config"]])
def test_wrong_arguments_are_one_line(stage, arguments):
    assert_one_line(*stage("vae", *arguments), arguments[0], "--help")


def test_two_runs_in_one_folder_are_refused(stage, chain):
    """This process holds the lock as another run would: it is a lock of the operating system."""
    with locked(chain / "smoke" / "ldm"):
        assert_one_line(*stage("ldm", f"root={chain}"), f"process {os.getpid()}", "name=")
    assert stage("ldm", f"root={chain}")[0] == 0


def test_the_command_in_a_message_acts_on_the_same_experiment(stage, chain, tmp_path):
    status, said = stage("ldm", f"root={chain}", "ldm.steps=4")
    assert_one_line(status, said, f"`make ldm FRESH=1 CONFIG=configs/smoke.yaml SET='root={chain} ldm.steps=4'`")
    assert make_command("vae", "a b.yaml", ["name=$x y"]) == """make vae CONFIG='a b.yaml' SET=''"'"'name=$$x y'"'"''"""


def test_an_export_of_another_version_is_named(stage, chain_copy):
    path = chain_copy / "smoke" / "ldm" / "export.safetensors"
    tensors, about = load_export(path, "")
    del about["sha256"]
    about["config"]["network"]["a_key_of_tomorrow"] = 1
    save_export(path, tensors, about)
    said = stage("sample", f"root={chain_copy}", "--labels", "red cube")
    assert_one_line(*said, str(path), "another version", "make ldm FRESH=1 CONFIG=configs/smoke.yaml")


def test_guidance_of_a_model_that_never_saw_a_picture_without_labels_is_refused(stage, chain_copy):
    path = chain_copy / "smoke" / "ldm" / "export.safetensors"
    tensors, about = load_export(path, "")
    del about["sha256"]
    about["config"]["label_dropout"] = 0.0
    save_export(path, tensors, about)
    asked = ("--labels", "red cube", "--guidance", "2", f"root={chain_copy}")
    assert_one_line(*stage("sample", *asked), "guidance 2", "label_dropout=0")


def test_a_run_older_than_a_key_is_taken_as_with_its_default(stage, chain_copy):
    path = chain_copy / "smoke" / "ldm" / "export.safetensors"
    tensors, about = load_export(path, "")
    del about["sha256"], about["identity"]["ldm.network.dropout"]
    save_export(path, tensors, about)
    status, said = stage("ldm", f"root={chain_copy}")
    assert (status, "finished already" in said) == (0, True), said
    assert_one_line(*stage("ldm", f"root={chain_copy}", "ldm.network.dropout=0.5"), "ldm.network.dropout: 0.0 -> 0.5")


def test_a_report_older_than_a_key_is_taken_as_with_its_default(stage, chain_copy):
    path = chain_copy / "smoke" / "eval" / "report.json"
    report = json.loads(path.read_text())
    del report["provenance"]["configuration"]["eval"]["compile"]
    path.write_text(json.dumps(report))
    status, said = stage("evaluate", f"root={chain_copy}")
    assert (status, "finished already" in said) == (0, True), said
    assert json.loads(path.read_text()) == report


def test_a_report_from_before_the_order_of_test_sets_was_read_stays(stage, chain_copy):
    """An older report names multi-hot label sets; other sets are still noticed."""
    path, folder = chain_copy / "smoke/eval/report.json", chain_copy / "smoke/render"
    report, names = json.loads(path.read_text()), list(json.loads((folder / "objects.json").read_text()))
    sets = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("test", "new_test")}
    rows = {key: [[float(name in asked) for name in names] for asked in value] for key, value in sets.items()}
    content = json.dumps([rows, names], sort_keys=True).encode()
    report["provenance"]["test_sets_sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(report))
    status, said = stage("evaluate", f"root={chain_copy}")
    assert (status, "finished already" in said) == (0, True), said
    assert json.loads(path.read_text()) == report
    (folder / "test.json").write_text(json.dumps(sets["test"][:2]))
    status, said = stage("evaluate", f"root={chain_copy}")
    assert (status, "old report is now" in said) == (0, True), said


def test_no_configuration(stage):
    assert_one_line(*stage("vae", config="configs/none.yaml"), "configs/none.yaml", "configs/demo.yaml")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--labels", "red cub"], ["red cub", "did you mean 'red cube'"]),
        (["--labels", ","], ["empty label set"]),
        (["--labels", "red cube, red cube"], ["appears twice"]),
        (["--labels", "red cube", "--count", "0"], ["--count 0"]),
        (["--labels", "red cube", "--steps", "0"], ["--steps 0"]),
        (["--labels", "red cube", "--steps", "1001"], ["1001", "ldm.timesteps"]),
        (["--labels", "red cube", "--guidance", "-1"], ["--guidance -1"]),
        (["--labels", "red cube", "--out", "x.bmp"], ["x.bmp", ".png"]),
        (["--labels", "red cube", "--model", "gan", "--steps", "5"], ["--steps", "--model ldm"]),
    ],
)
def test_sample_faults(stage, chain, arguments, parts):
    assert_one_line(*stage("sample", f"root={chain}", *arguments), *parts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("ldm.learning_rate=0.5", "ldm.learning_rate: 0.001 -> 0.5"),
        ("ldm.batch=4", "ldm.batch: 8 -> 4"),
        ("seed=9", "seed: 1 -> 9"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_configuration_is_refused_with_what_differs(stage, chain_copy, change, words, finished):
    folder = chain_copy / "smoke/ldm"
    if not finished:
        (folder / "export.safetensors").unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert_one_line(*stage("ldm", f"root={chain_copy}", change), words, "--fresh")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_other_pictures_are_refused_by_a_training(stage, chain_copy, tmp_path):
    shutil.copytree(chain_copy / "smoke/render", other := tmp_path / "other")
    names = json.loads((other / "train.json").read_text())
    first, second = list(names)[:2]
    (other / "iclevr" / first).write_bytes((other / "iclevr" / second).read_bytes())
    said = stage("evaluator", f"root={chain_copy}", f"data.folder={other}")
    assert_one_line(*said, "parent data: ", " -> ", "--fresh")


def test_fresh_moves_the_old_run_aside(stage, chain_copy):
    status, said = stage("ldm", "--fresh", f"root={chain_copy}", "ldm.steps=1")
    assert status == 0, said
    assert (chain_copy / "smoke/ldm.old-1/export.safetensors").exists()
    assert (chain_copy / "smoke/ldm/export.safetensors").exists()


def test_another_autoencoder_under_the_ldm_is_refused(stage, chain_copy):
    assert stage("vae", "--fresh", f"root={chain_copy}", "vae.learning_rate=0.002")[0] == 0
    assert_one_line(*stage("ldm", f"root={chain_copy}"), "parent vae", "->", "--fresh")
    assert_one_line(*stage("sample", f"root={chain_copy}", "--labels", "red cube"), "another autoencoder", "FRESH=1")


@pytest.mark.parametrize("name", ["vae", "ldm"])
def test_a_damaged_export_is_named(stage, chain_copy, name):
    path = chain_copy / "smoke" / name / "export.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 255
    path.write_bytes(content)
    assert_one_line(*stage("sample", f"root={chain_copy}", "--labels", "red cube"), str(path), "damaged")


def test_a_hostile_export_is_refused_before_memory_is_spent(stage, chain_copy):
    """Its header asks for a network of gigabytes; its tensors are a few kilobytes."""
    path = chain_copy / "smoke/ldm/export.safetensors"
    tensors, about = load_export(path, "")
    path.unlink()
    save_export(path, tensors, about | {"classes": 60_000_000})
    reset_peak(torch.device("cpu"))
    before = peak_memory(torch.device("cpu"))
    assert_one_line(*stage("sample", f"root={chain_copy}", "--labels", "red cube"), str(path), "another version")
    assert peak_memory(torch.device("cpu")) - before < 200 * 2**20


def test_data_faults_reach_the_user(stage, tmp_path):
    folder = write_folder(tmp_path / "d")
    labels = json.loads((folder / "train.json").read_text())
    labels["CLEVR_train_000001_0.png"] = ["pink cube"]
    (folder / "train.json").write_text(json.dumps(labels))
    arguments = (f"root={tmp_path / 'out'}", f"data.folder={folder}", "data.validation_every=3")
    assert_one_line(*stage("evaluator", *arguments), "train.json", "pink cube")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_lpips_without_its_backbone_names_the_file_and_the_key(stage, chain, tmp_path):
    absent = tmp_path / "vgg16.pth"
    arguments = (f"root={chain}", "name=lpips", f"vae.perceptual.weights={absent}", "vae.perceptual.weight=1.0")
    folder = chain / "smoke"
    arguments += (f"data.folder={folder / 'render'}",)
    (chain / "lpips").mkdir(exist_ok=True)
    if not (chain / "lpips/evaluator").exists():
        (chain / "lpips/evaluator").symlink_to(folder / "evaluator")
    assert_one_line(*stage("vae", *arguments), str(absent), "vae.perceptual.weight=0")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "is missing"),
        (Hostile, "refused"),
        ({"weights": {}}, "'model'"),
        ({"model": {"conv1.weight": torch.zeros(1)}}, "ResNet-18 with 24 outputs"),
        (b"", "damaged"),
    ],
)
def test_a_wrong_lab_checkpoint(stage, chain, tmp_path, content, part):
    path = tmp_path / "checkpoint.pth"
    if content is Hostile:
        content = pickle.dumps(Hostile(tmp_path / "ran"))
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    arguments = (f"root={tmp_path}", f"data.folder={chain}/smoke/render", f"evaluator.checkpoint={path}")
    assert_one_line(*stage("evaluator", *arguments), str(path), part)
    assert not (tmp_path / "ran").exists()
