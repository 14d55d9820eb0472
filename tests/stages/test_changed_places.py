"""Places and order are parents of the stages that read them: a finished run notices when they change."""

import json

import pytest

from stages.engine.export import load_export, save_export
from tests.data.folder import write_folder
from tests.helpers import assert_one_line

TINY = [f"{stage}.{key}" for stage in ("evaluator", "vae", "ldm") for key in ("steps=1", "batch=4")]
TINY += ["vae.codebook.start=0", "vae.discriminator.start=0", "data.validation_every=3", "ldm.network.places=false"]
TINY += ["eval.batch=2"]  # as many as its test sets have


def settings(folder, *changes):
    return (f"root={folder.parent}", f"data.folder={folder}", *TINY, *changes)


def finished(stage, name, arguments):
    """Runs the stage, and a second time to see that it has finished."""
    for words in ("done in", "finished already"):
        status, said = stage(name, *arguments)
        assert (status, words in said) == (0, True), said


def move_an_object(folder):
    places = json.loads((folder / "places.json").read_text())
    places["CLEVR_train_000000_0.png"] = [[0.5, 0.5]]
    (folder / "places.json").write_text(json.dumps(places))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("evaluator", "evaluator.cell_weight=0.3"),
        ("vae", "vae.windows_until=1"),
        ("vae", "vae.cell_weight=0.1"),
        ("ldm", "ldm.apart=0.01"),
    ],
)
def test_changed_places_are_noticed_by_what_learned_from_them(stage, tmp_path, name, change):
    folder = write_folder(tmp_path / "d")
    changes = (change, "vae.label_weight=0", "ldm.network.order=false")  # else the order alone makes places a parent
    for before in ("evaluator", "vae")[: ("evaluator", "vae", "ldm").index(name)]:
        assert stage(before, *settings(folder))[0] == 0
    finished(stage, name, settings(folder, *changes))
    move_an_object(folder)
    assert_one_line(*stage(name, *settings(folder, *changes)), f"{name} holds another run (parent places: ")


def test_changed_turns_are_noticed_by_a_network_that_is_told_them_alone(stage, tmp_path):
    folder, told = write_folder(tmp_path / "d"), ("ldm.network.places=true", "ldm.network.turns=true")
    (folder / "turns.json").write_text('{"CLEVR_train_000000_0.png": [0.5]}')
    for name in ("evaluator", "vae"):
        assert stage(name, *settings(folder))[0] == 0
    finished(stage, "ldm", settings(folder, *told, "name=told", "uses.evaluator=smoke", "uses.vae=smoke"))
    finished(stage, "ldm", settings(folder, told[0]))
    (folder / "turns.json").write_text('{"CLEVR_train_000000_0.png": [0.6]}')
    assert "finished already" in stage("ldm", *settings(folder, told[0]))[1]
    arguments = settings(folder, *told, "name=told", "uses.evaluator=smoke", "uses.vae=smoke")
    assert_one_line(*stage("ldm", *arguments), "ldm holds another run (parent turns: ")


def test_changed_places_are_ignored_by_what_did_not_learn_from_them(stage, tmp_path):
    folder = write_folder(tmp_path / "d")
    finished(stage, "evaluator", settings(folder))
    move_an_object(folder)
    assert "finished already" in stage("evaluator", *settings(folder))[1]


def test_a_run_that_named_no_places_stays_finished(stage, tmp_path):
    """An evaluator that learned from cells before places were a parent stays finished."""
    folder = write_folder(tmp_path / "d")
    arguments = settings(folder, "evaluator.cell_weight=0.3")
    finished(stage, "evaluator", arguments)
    path = tmp_path / "smoke/evaluator/export.safetensors"
    tensors, about = load_export(path, "")
    del about["sha256"], about["identity"]["parent places"]
    save_export(path, tensors, about)
    assert "finished already" in stage("evaluator", *arguments)[1]


def test_a_changed_order_is_noticed_where_no_place_is_known(stage, tmp_path):
    folder = write_folder(tmp_path / "d", places=False)
    for name in ("evaluator", "vae"):
        assert stage(name, *settings(folder))[0] == 0
    finished(stage, "ldm", settings(folder))
    labels = json.loads((folder / "train.json").read_text())
    labels["CLEVR_train_000000_2.png"].reverse()
    (folder / "train.json").write_text(json.dumps(labels))
    assert "finished already" in stage("vae", *settings(folder))[1]
    assert_one_line(*stage("ldm", *settings(folder)), "ldm holds another run (parent order: ")
