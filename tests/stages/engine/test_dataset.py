"""Packs: how a dataset reads them, its hashes, and packs larger than memory or than the device's memory."""

import json
import os

import pytest
import torch

from data.labels import CLEVR
from models.condition import Condition, unknown_turns
from stages.engine import dataset
from stages.engine.config import load
from stages.engine.dataset import Dataset, load_dataset
from stages.engine.drawn import Drawn
from stages.engine.errors import UserError
from stages.engine.export import load_export, save_export
from stages.engine.packs import on_disk
from tests.conftest import HERE, SMOKE
from tests.data.folder import write_folder

ON_A_MAP = ("gan.generator.condition=modulation", "gan.critic.pool=sum")  # what a GAN on a map of places needs


def test_an_array_on_disk_is_zeros_takes_values_and_leaves_no_file(tmp_path):
    array = on_disk(tmp_path / "packs", 5, 3, 2)
    assert (array.shape, array.dtype, int(array.sum())) == ((5, 3, 2), torch.uint8, 0)
    array[2] = 7
    assert int(array.sum()) == 42
    assert list((tmp_path / "packs").iterdir()) == []


def test_a_full_disk_is_met_before_the_first_picture(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match=r"12288 bytes into .*No space left.*free space"):
        on_disk(tmp_path, 1, 3, 64, 64)


def test_training_and_held_out_pictures_each_stay_where_they_do_not_fit_on_the_device(monkeypatch, tmp_path):
    images, gpu = torch.zeros(4, 3, 64, 64, dtype=torch.uint8), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * images.nbytes - 2, 10**9))
    assert dataset.placed(images, gpu) is images
    asked = []
    monkeypatch.setattr(dataset, "placed", lambda images, device: asked.append(len(images)) or images)
    made = opened(write_folder(tmp_path / "d"))
    assert asked == [len(made.images), len(made.held_out_images)] and all(asked)


@pytest.mark.gpu
def test_pictures_that_are_too_many_for_the_device_are_brought_there_by_batch(monkeypatch):
    images, device = torch.arange(4 * 3 * 64 * 64).view(4, 3, 64, 64).to(torch.uint8), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 10**9))
    kept = dataset.placed(images, device)
    assert kept.device.type == "cpu"
    conditions = Condition.of_lists([[0]] * 4, 24).to(device)
    few = Dataset(kept, conditions, images[:1].to(device), conditions[:1], {}, CLEVR, "", "", "", "", None)
    index = torch.tensor([3, 1], device=device)
    assert torch.equal(few.pictures(index).cpu(), dataset.to_unit(images[[3, 1]]))


def test_pictures_are_drawn_once_or_as_often_as_they_have_labels():
    conditions = Condition.of_lists([[0, 2, 3], [1], [0, 1]], 4)
    for how, expected in (("uniform", [0, 1, 2]), ("by-labels", [0, 0, 0, 1, 2, 2])):
        drawn = Drawn(conditions, how)
        assert drawn[torch.arange(len(drawn))].tolist() == expected


@pytest.mark.parametrize("chunk", [1, 2, 2**20])
@pytest.mark.parametrize(("how", "expected"), [("uniform", [3, 0, 1]), ("by-labels", [3, 3, 0, 0, 0, 1])])
def test_pictures_are_drawn_from_a_part_of_them(monkeypatch, how, expected, chunk):
    monkeypatch.setattr("stages.engine.drawn.CHUNK", chunk)
    conditions = Condition.of_lists([[0, 2, 3], [1], [2, 3], [0, 1]], 4)
    drawn = Drawn(conditions, how, only=torch.tensor([3, 0, 1], dtype=torch.int32))
    draws = torch.arange(len(drawn))
    assert drawn[draws].tolist() == drawn.on_host(draws).tolist() == expected


def opened(folder, *changes):
    settings = (
        f"root={folder.parent}",
        f"data.folder={folder}",
        "data.validation_every=3",
        "ldm.network.places=false",
        *changes,
    )
    return load_dataset(load(HERE / SMOKE, list(settings)), torch.device("cpu"))


def places_for(folder):
    """Makes up a place for each object, the same in all pictures of a scene."""
    labels = json.loads((folder / "train.json").read_text())
    return {name: [[0.1 * i, int(name[12:18]) / 20] for i in range(len(row))] for name, row in labels.items()}


def test_a_dataset_is_known_by_its_pictures_and_label_sets_and_apart_from_those_by_its_places(tmp_path):
    folder = write_folder(tmp_path / "d", places=False)
    plain = opened(folder)
    (folder / "places.json").write_text(json.dumps(places_for(folder)))
    placed = opened(folder)
    assert placed.sha256 == plain.sha256
    assert plain.places_sha256 == "" != placed.places_sha256
    (folder / "places.json").write_text(json.dumps(places_for(folder) | {"CLEVR_train_000000_0.png": [[0.3, 0.3]]}))
    assert opened(folder).places_sha256 not in ("", placed.places_sha256)
    packs = list((tmp_path / "packs").glob("*.safetensors"))
    assert len(packs) == 3
    tensors, _ = load_export(packs[0], "")
    assert tensors["objects"].dtype == torch.int8, "labels are kept as indices, not as floats of 0 and 1"
    labels = Condition(tensors["objects"], tensors["places"], unknown_turns(tensors["objects"]), 24).labels
    of_pictures = {"images": tensors["images"], "labels": labels.to(torch.uint8), "held_out": tensors["held_out"]}
    assert save_export(tmp_path / "as-before", of_pictures, {}) == plain.sha256, "the hash of a pack with only these"
    of_places = {"objects": placed.conditions.objects, "places": placed.conditions.places}
    of_places |= {name: torch.cat([of_places[name], getattr(placed.held_out_conditions, name)]) for name in of_places}
    of_places["objects"] = of_places["objects"].long()
    assert save_export(tmp_path / "places", of_places, {}) == placed.places_sha256, "and the places', of int64"


def test_conditions_are_the_lists_in_order_with_their_places(tmp_path):
    folder = write_folder(tmp_path / "d")
    (folder / "places.json").write_text(json.dumps(places_for(folder)))
    dataset, labels, places = opened(folder), json.loads((folder / "train.json").read_text()), places_for(folder)
    apart = [name for name in labels if name[12:18] in ("000002", "000005")]  # every third scene
    trained = [name for name in labels if name not in apart]
    for names, rows in ((trained, dataset.conditions), (apart, dataset.held_out_conditions)):
        lists = [[CLEVR.index[name] for name in labels[n]] for n in names]
        expected = Condition.of_lists(lists, 24, [places[n] for n in names])
        assert torch.equal(rows.objects.long(), expected.objects)
        torch.testing.assert_close(rows.places, expected.places)
    every = torch.arange(len(trained))
    expected = Condition.of_lists([[CLEVR.index[n] for n in labels[name]] for name in trained], len(CLEVR)).labels
    assert torch.equal(dataset.labels(every), expected)
    assert dataset.held_out_labels.sum(1).tolist() == [1, 2, 3] * 2
    assert list(dataset.test_sets) == ["test", "new_test"]
    sets = dataset.test_sets["test"]
    red, cyan, gray = (CLEVR.index[name] for name in ("red cube", "cyan sphere", "gray cube"))
    assert sets.objects.tolist() == [[red, -1], [cyan, gray]]
    assert not sets.placed.any()


def test_pictures_that_no_training_sees_add_no_slots_to_what_it_learns(tmp_path, stage):
    folder = write_folder(tmp_path / "d", places=False)
    labels = json.loads((folder / "train.json").read_text())
    apart = {name: labels.pop(name) for name in list(labels) if name[12:18] == "000005"}
    apart["CLEVR_train_000005_2.png"] = ["red cube", "gray cube", "cyan sphere", "blue sphere", "red sphere"]
    for file, content in (("train", labels), ("validation", apart)):
        (folder / f"{file}.json").write_text(json.dumps(content))
    dataset = opened(folder)
    assert (dataset.conditions.slots, dataset.most_objects) == (5, 3)
    settings = [f"{name}.{key}" for name in ("evaluator", "vae", "ldm", "ddpm") for key in ("steps=1", "batch=4")]
    settings += ["vae.codebook.start=0", "vae.discriminator.start=0", "ldm.network.places=false"]
    settings += ["ddpm.network=patches", "ddpm.unet.channels=16", "ddpm.unet.head_width=8", "ddpm.unet.order=true"]
    for name in ("evaluator", "vae", "ldm", "ddpm"):
        status, said = stage(name, f"root={tmp_path}", f"data.folder={folder}", *settings)
        assert status == 0, said
    for name, order in (("ldm", "labels.slot.weight"), ("ddpm", "unet.labels.slot.weight")):
        tensors, about = load_export(tmp_path / f"smoke/{name}/export.safetensors", "")
        assert about["most"] == len(tensors[order]) == 3


def test_what_is_withheld_is_withheld_of_pictures_and_conditions_alike(tmp_path):
    folder = write_folder(tmp_path / "d", scenes=20)
    (folder / "places.json").write_text(json.dumps(places_for(folder)))
    every, seen = opened(folder), opened(folder, "data.withhold=0.5")
    assert 14 <= len(seen.images) == len(seen.conditions) < len(every.images)
    whole = {image.numpy().tobytes(): i for i, image in enumerate(every.images)}
    rows = [whole[image.numpy().tobytes()] for image in seen.images[:]]
    assert torch.equal(seen.conditions.objects, every.conditions.objects[rows])
    assert torch.equal(seen.conditions.places, every.conditions.places[rows])
    index = torch.arange(len(rows))
    assert torch.equal(seen.labels(index), every.labels(torch.tensor(rows)))
    assert torch.equal(seen.pictures(index), every.pictures(torch.tensor(rows)))
    assert seen.sha256 == f"{every.sha256} withhold 0.5"


def test_withholding_every_picture_is_one_line(tmp_path):
    folder = write_folder(tmp_path / "d", places=False)
    labels = json.loads((folder / "train.json").read_text())
    (folder / "train.json").write_text(json.dumps({name: ["red cube", "gray cube"] for name in labels}))
    with pytest.raises(UserError, match=rf"data\.withhold=1 leaves no picture of {folder} to train on; lower it"):
        opened(folder, "data.withhold=1.0")


@pytest.mark.parametrize("chunk", [7, 2**20])
def test_the_pictures_whose_objects_keep_a_distance(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(dataset, "CHUNK", chunk)
    folder = write_folder(tmp_path / "d", scenes=20)
    places = places_for(folder)
    every = opened(folder)
    assert every.apart(0, "ldm.apart") is None
    near = {name: [[0.5, 0.5], [0.5, 0.6], [0.9, 0.9]][: len(row)] for name, row in places.items()}
    wide = {name: [[0.5, 0.5], [0.5, 0.8], [0.9, 0.9]][: len(row)] for name, row in places.items()}
    mixed = {name: (near if i % 2 else wide)[name] for i, name in enumerate(places)}
    (folder / "places.json").write_text(json.dumps(mixed))
    found = opened(folder)
    kept = found.apart(0.2, "ldm.apart")
    alone = found.conditions.present.sum(1) == 1
    far = (found.conditions.places[:, 1, 1] - 0.8).abs() < 1e-3
    assert kept.tolist() == (alone | far).nonzero()[:, 0].tolist()
    assert len(alone) > len(kept) > alone.sum()


def test_a_distance_that_no_picture_keeps_is_one_line_before_anything_is_trained(tmp_path):
    folder = write_folder(tmp_path / "d", scenes=20)
    with pytest.raises(
        UserError, match=rf"ldm\.apart=0\.99: {folder} has no picture of 2 objects .* so far apart; set"
    ):
        opened(folder, "ldm.apart=0.99")
    with pytest.raises(UserError, match="so far apart"):
        opened(folder, "ldm.apart=0.99", "models=[onestep]")
    opened(folder, "ldm.apart=0.99", "models=[gan]")
    opened(folder, "ldm.apart=0.99", "uses.ldm=another")


@pytest.mark.parametrize(
    ("change", "otherwise"),
    [
        ("ldm.network.places=true", "ldm.network.places=false"),
        ("ldm.apart=0.2", "ldm.apart=0.0"),
        ("gan.generator.entry=map", "gan.generator.entry=vector"),
        ("gan.critic.read=places", "gan.critic.read=pooled"),
        ("vae.cell_weight=0.1", "vae.cell_weight=0.0"),
        ("evaluator.cell_weight=0.1", "evaluator.cell_weight=0.0"),
    ],
)
def test_what_needs_places_is_refused_where_none_is_known_and_says_how_to_do_without(tmp_path, change, otherwise):
    folder = write_folder(tmp_path / "d", places=False)
    with pytest.raises(UserError, match="no object's place is known") as error:
        opened(folder, *ON_A_MAP, change)
    assert str(error.value).endswith(f"or set {otherwise}")
    opened(folder, *ON_A_MAP, change, otherwise)


def test_turns_are_part_of_conditions_and_refused_where_none_is_known(tmp_path):
    folder = write_folder(tmp_path / "d")
    with pytest.raises(UserError, match="not known how any object is turned") as error:
        opened(folder, "ldm.network.turns=true", "ldm.network.places=true")
    assert str(error.value).endswith("or set ldm.network.turns=false")
    before = opened(folder)
    assert not before.conditions.turned.any() and before.turns_sha256 == ""
    first = next(iter(json.loads((folder / "train.json").read_text())))
    (folder / "turns.json").write_text(json.dumps({first: [0.25]}))
    found = opened(folder, "ldm.network.turns=true", "ldm.network.places=true")
    assert found.conditions.turns[0].tolist() == [0.25, -1, -1] and found.conditions.turned.sum() == 1
    assert (found.sha256, found.places_sha256) == (before.sha256, before.places_sha256)
    assert found.layouts(turns=True) == found.layouts() | {"turns": found.turns_sha256}
    other = write_folder(tmp_path / "e", scenes=7)
    both = opened(folder, f"data.folder=[{folder},{other}]")
    assert both.conditions.turned.sum() == 1 and len(both.conditions) > len(found.conditions)


@pytest.mark.parametrize(
    ("stage_name", "change"),
    [("ldm", "ldm.network.places=true"), ("gan", "gan.critic.read=places"), ("ddpm", "ddpm.places=true")],
)
def test_a_stage_that_models_does_not_name_refuses_what_it_needs_too(stage, tmp_path, stage_name, change):
    folder = write_folder(tmp_path / "d", places=False)
    other = "gan" if stage_name != "gan" else "ldm"
    arguments = (f"root={tmp_path}", f"data.folder={folder}", "data.validation_every=3", f"models=[{other}]")
    status, said = stage(stage_name, *arguments, *ON_A_MAP, "ldm.network.places=false", change)
    assert status == 2 and said.splitlines()[-1].startswith("error: ") and "no object's place is known" in said


def test_ldm_refuses_unknown_turns_before_it_encodes_a_picture(stage, tmp_path):
    folder = write_folder(tmp_path / "d")
    arguments = (f"root={tmp_path}", f"data.folder={folder}", "data.validation_every=3", "models=[gan]")
    status, said = stage("ldm", *arguments, "ldm.network.turns=true")
    assert status == 2 and said.splitlines()[-1].startswith("error: ") and "how any object is turned" in said


def test_drawn_scenes_are_known_apart_from_the_bits_of_their_pictures(tmp_path):
    folder = write_folder(tmp_path / "d")
    assert opened(folder).parents == {"data": opened(folder).sha256}
    settings = {"scenes": 4, "seed": 0, "size": 64}
    (folder / "render.json").write_text(json.dumps(settings))
    found = opened(folder)
    assert found.parents == {"data": found.sha256, "scenes": found.scenes} and found.scenes
    assert opened(folder, "data.withhold=0.5").scenes == f"{found.scenes} withhold 0.5"
    (folder / "render.json").write_text(json.dumps(settings | {"seed": 1}))
    assert opened(folder).scenes not in ("", found.scenes) and opened(folder).sha256 == found.sha256
    other = write_folder(tmp_path / "e", scenes=7)
    (other / "render.json").write_text(json.dumps(settings))
    assert opened(folder, f"data.folder=[{folder},{other}]").scenes == "", "of several folders it is not known"
    (folder / "render.json").write_text("[]")
    assert opened(folder).scenes == ""
