"""Packs: found by content, joined from several folders, named themselves as the data, trusted when large."""

import json
import os
import re
import shutil

import pytest
import torch

from stages.engine import packs
from stages.engine.config import load
from stages.engine.dataset import load_dataset
from stages.engine.errors import UserError
from stages.engine.export import load_export, read_about, save_export
from stages.engine.latents import from_pack
from tests.conftest import HERE, SMOKE
from tests.data.folder import write_folder
from tests.stages.handful import context_with

CPU = torch.device("cpu")


def opened(root, *folders, changes=()):
    several = json.dumps([str(folder) for folder in folders]) if len(folders) > 1 else str(folders[0])
    settings = [f"root={root}", f"data.folder={several}", "data.validation_every=3", "ldm.network.places=false"]
    return load_dataset(load(HERE / SMOKE, [*settings, *changes]), CPU)


def whole_packs(root):
    return [path for path in (root / "packs").glob("*.safetensors") if not path.is_symlink()]


def renamed(folder, first):
    """Renames a folder's scenes, so that its pictures differ in name and content from those of `write_folder`."""
    for file in ("train.json", "places.json"):
        if (folder / file).exists():
            text = (folder / file).read_text()
            (folder / file).write_text(text.replace("CLEVR_train_0000", f"CLEVR_train_00{first}"))
    for path in (folder / "iclevr").iterdir():
        path.rename(path.with_name(path.name.replace("CLEVR_train_0000", f"CLEVR_train_00{first}")))
    return folder


def test_folders_that_are_copied_moved_or_touched_share_one_pack(tmp_path, capsys):
    folder = write_folder(tmp_path / "d")
    expected = opened(tmp_path, folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    for path in (folder / "iclevr").iterdir():
        os.utime(path, (0, 0))
    moved = folder.rename(tmp_path / "moved")
    for other in (copy, moved):
        found = opened(tmp_path, other)
        assert found.sha256 == expected.sha256 and torch.equal(found.images, expected.images)
        assert "holds the same as" in capsys.readouterr().err
        opened(tmp_path, other)
        assert "holds the same" not in capsys.readouterr().err, "the link was found"
    (pack,) = whole_packs(tmp_path)
    name = min((copy / "iclevr").iterdir())
    shutil.copy(max((copy / "iclevr").iterdir()), name)  # noise pictures take about the same bytes, so ...
    name.write_bytes(name.read_bytes().ljust(0))
    assert opened(tmp_path, copy).sha256 != expected.sha256
    assert len(whole_packs(tmp_path)) == 2
    assert f"{pack} (0.0 GB) is of" not in capsys.readouterr().err, "a link still needs it"


def test_the_order_of_keys_in_a_label_file_changes_nothing(tmp_path):
    folder = write_folder(tmp_path / "d")
    expected = opened(tmp_path, folder)
    for name in ("train.json", "places.json"):
        content = json.loads((folder / name).read_text())
        assert list(content) == sorted(content)
        (folder / name).write_text(json.dumps(dict(reversed(content.items())), indent=1))
    found = opened(tmp_path, folder)
    assert (found.sha256, found.places_sha256) == (expected.sha256, expected.places_sha256)
    assert torch.equal(found.images, expected.images)
    text = (folder / "train.json").read_text().rstrip(" }\n")
    (folder / "train.json").write_text(f'{text}, "{max(content)}": ["red cube"], "{max(content)}": ["red cube"]}}')
    with pytest.raises(UserError, match="appears twice"):
        opened(tmp_path, folder)


def test_pictures_of_the_same_names_and_sizes_but_other_pixels_are_another_pack(tmp_path):
    folder = write_folder(tmp_path / "d")
    expected = opened(tmp_path, folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    first = min((copy / "iclevr").iterdir())
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # in the checksum of the last, empty chunk
    assert first.stat().st_size == len(content)
    opened(tmp_path, copy)
    assert len(whole_packs(tmp_path)) == 2
    assert expected.sha256


def test_packs_that_nothing_needs_any_more_are_said_with_their_size(tmp_path, capsys):
    folder = write_folder(tmp_path / "d")
    opened(tmp_path, folder)
    (pack,) = whole_packs(tmp_path)
    labels = json.loads((folder / "train.json").read_text())
    labels[min(labels)] = ["gray cube"]
    (folder / "train.json").write_text(json.dumps(labels))
    capsys.readouterr()
    opened(tmp_path, folder)
    assert f"{pack} (0.0 GB) holds an older state of {folder}; delete it" in capsys.readouterr().err
    opened(tmp_path, folder, changes=["data.size=32"])
    assert "older state" not in capsys.readouterr().err, "of another size: both may be needed"
    other = renamed(write_folder(tmp_path / "e"), "77")
    folder.rename(tmp_path / "elsewhere")
    opened(tmp_path, other)
    assert f"holds {folder}, which is gone" in capsys.readouterr().err
    assert pack.exists()


@pytest.mark.parametrize("places", [True, False])
def test_several_folders_are_one_set_in_their_order(tmp_path, places):
    first = write_folder(tmp_path / "a", places=places)
    second = renamed(write_folder(tmp_path / "b", scenes=9, places=places), "55")
    a, b, both = (opened(tmp_path, *folders) for folders in ([first], [second], [first, second]))
    rows = torch.arange(len(a.images) + len(b.images))
    assert torch.equal(both.images[rows], torch.cat([a.images, b.images]))
    assert torch.equal(both.held_out_images[:], torch.cat([a.held_out_images, b.held_out_images]))
    assert torch.equal(both.conditions.objects, torch.cat([a.conditions.objects, b.conditions.objects]))
    assert torch.equal(both.conditions.places, torch.cat([a.conditions.places, b.conditions.places]))
    assert torch.equal(both.pictures(rows[5:25]), torch.cat([a.pictures(rows[5:12]), b.pictures(rows[:13])]))
    assert len({a.sha256, b.sha256, both.sha256, opened(tmp_path, second, first).sha256}) == 4
    assert bool(both.places_sha256) == places
    assert len(whole_packs(tmp_path)) == 2, "each is packed on its own, and reused"


def test_a_longer_list_in_one_folder_pads_the_others(tmp_path):
    first, second = write_folder(tmp_path / "a"), renamed(write_folder(tmp_path / "b", places=False), "55")
    labels = json.loads((second / "train.json").read_text())
    five = ["red cube", "gray cube", "cyan sphere", "blue sphere", "red sphere"]
    (second / "train.json").write_text(json.dumps({name: five for name in labels}))
    both = opened(tmp_path, first, second)
    assert (both.conditions.slots, both.most_objects) == (5, 5)
    assert both.conditions.present.sum(1).tolist() == [1, 2, 3] * 4 + [5] * 12
    assert both.labels(torch.tensor([0, 12])).sum(1).tolist() == [1, 5]


def test_folders_of_other_objects_are_refused_in_one_line(tmp_path):
    first, second = write_folder(tmp_path / "a"), write_folder(tmp_path / "b")
    objects = json.loads((second / "objects.json").read_text())
    (second / "objects.json").write_text(json.dumps({**objects, "pink cube": 24}))
    with pytest.raises(UserError, match=r"b and .*a name other objects \('pink cube' is in one only\); give both"):
        opened(tmp_path, first, second)
    (second / "objects.json").write_text(json.dumps({name: 23 - i for name, i in objects.items()}))
    with pytest.raises(UserError, match="their indices differ"):
        opened(tmp_path, first, second)


def test_label_sets_are_read_from_the_first_folder_that_has_them(tmp_path):
    first, second = write_folder(tmp_path / "a"), renamed(write_folder(tmp_path / "b"), "55")
    (first / "new_test.json").unlink()
    (second / "test.json").write_text(json.dumps([["gray cube"]] * 3))
    (second / "new_test.json").write_text(json.dumps([["gray cube"]] * 5))
    found = opened(tmp_path, first, second).test_sets
    assert {name: len(asked) for name, asked in found.items()} == {"test": 2, "new_test": 5}
    (second / "new_test.json").unlink()
    with pytest.raises(UserError, match=r"a/new_test\.json is missing"):
        opened(tmp_path, first, second)


def test_a_pack_is_data_too(tmp_path):
    folder = write_folder(tmp_path / "d")
    expected = opened(tmp_path, folder)
    pack = shutil.move(whole_packs(tmp_path)[0], tmp_path / "million.safetensors")
    for name in ("test", "new_test"):
        (folder / f"{name}.json").rename(tmp_path / f"{name}.json")
    shutil.rmtree(folder)
    found = opened(tmp_path, pack)
    assert (found.sha256, found.places_sha256) == (expected.sha256, expected.places_sha256)
    assert torch.equal(found.images, expected.images)
    with pytest.raises(UserError, match=r"is of 64x64 pictures, but data\.size is 32; set data\.size=64"):
        opened(tmp_path, pack, changes=["data.size=32"])
    with pytest.raises(UserError, match=r"nowhere\.safetensors is missing"):
        opened(tmp_path, tmp_path / "nowhere.safetensors")


def test_a_pack_of_scenes_drawn_here_may_replace_their_folder(tmp_path, stage):
    """The pack does not say how the scenes were drawn, and a finished run stays finished."""
    folder = write_folder(tmp_path / "d")
    (folder / "render.json").write_text('{"scenes": 4, "size": 64}')
    tiny = ("evaluator.steps=1", "evaluator.batch=4", "data.validation_every=3", f"root={tmp_path}", "eval.batch=2")
    assert stage("evaluator", f"data.folder={folder}", *tiny)[0] == 0
    pack = shutil.move(whole_packs(tmp_path)[0], folder / "million.safetensors")
    status, said = stage("evaluator", f"data.folder={pack}", *tiny)
    assert status == 0 and "finished already" in said, said


def test_a_pack_of_a_version_without_turns_is_read(tmp_path):
    opened(tmp_path, folder := write_folder(tmp_path / "d"))
    (path,) = whole_packs(tmp_path)
    tensors, about = load_export(path, "")
    del about["turns_sha256"]
    save_export(folder / "old.safetensors", {name: value.clone() for name, value in tensors.items()}, about)
    found = opened(tmp_path, folder / "old.safetensors")
    assert found.turns_sha256 == "" and not found.conditions.turned.any()


def flip(path, place):
    """Flips a bit and keeps the time of the file, as a failing disk does."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("tensors", "about", "words"),
    [
        ({}, {"objects": [1, 2]}, "names no objects"),
        ({}, {"objects": [["red cube"]]}, "names no objects"),
        ({}, {"objects": []}, "names no objects"),
        ({}, {"objects": ["a", "a"]}, "or one twice"),
        ({}, {"objects": "red cube"}, "is damaged"),
        ({}, {"places_sha256": None}, "of another type"),
        ({"images": torch.zeros(18, 3, 64 * 64, dtype=torch.uint8)}, {}, "its pictures are (18, 3, 4096)"),
        ({"images": torch.zeros(18, 3, 64, 64)}, {}, "torch.float32"),
        ({"images": torch.zeros(3, 3, 64, 64, dtype=torch.uint8)}, {}, "its objects are (18,"),
        ({"held_out": torch.zeros(18)}, {}, "held_out and places are (18,), torch.float32"),
        ({"objects": torch.full((18, 3), 100)}, {}, "an object is not among its 24"),
        ({"objects": torch.full((18, 3), -2)}, {}, "an object is not among its 24"),
        ({"places": torch.zeros(18, 3, 1)}, {}, "and (18, 3, 1)"),
        ({"turns": torch.zeros(18, 2)}, {"turns_sha256": "x"}, "its turns are (18, 2)"),
        ({"turns": torch.full((18, 3), torch.nan)}, {"turns_sha256": "x"}, "a turn is not in [0, 1)"),
        ({"turns": torch.ones(18, 3)}, {"turns_sha256": "x"}, "a turn is not in [0, 1)"),
        ({"turns": torch.zeros(18, 3)}, {}, "do not belong together"),
        ({}, {"turns_sha256": "x"}, "do not belong together"),
    ],
)
def test_a_pack_that_none_would_write_is_one_line(tmp_path, tensors, about, words):
    """A whole file with a right checksum, as someone may send it."""
    opened(tmp_path, folder := write_folder(tmp_path / "d"))
    (path,) = whole_packs(tmp_path)
    found, said = load_export(path, "")
    assert len(found["images"]) == 18 and found["objects"].shape == (18, 3)
    sent = folder / "sent.safetensors"
    save_export(sent, {name: value.clone() for name, value in found.items()} | tensors, said | about)
    with pytest.raises(UserError, match=re.escape(words)):
        opened(tmp_path, sent)


def test_a_large_pack_s_pictures_are_read_only_when_it_is_new_or_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(packs, "TRUSTED", 1000)
    folder = write_folder(tmp_path / "d")
    opened(tmp_path, folder)
    (pack,) = whole_packs(tmp_path)
    tensors = packs.load_export(pack, "", mapped=True)[0]
    start = pack.stat().st_size - sum(t.nbytes for t in tensors.values())
    before_pictures = start + tensors["places"].nbytes + tensors["held_out"].nbytes
    flip(pack, before_pictures)
    opened(tmp_path, folder)  # trusted: what a failing disk does to its pictures is not seen
    os.utime(pack, (1, 1))
    with pytest.raises(UserError, match="is damaged"):
        opened(tmp_path, folder)
    flip(pack, before_pictures)
    os.utime(pack, (2, 2))
    opened(tmp_path, folder)
    flip(pack, start)
    with pytest.raises(UserError, match="is damaged"):
        opened(tmp_path, folder)


def test_where_no_note_can_be_left_a_large_file_is_checked_at_each_start(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"content")
    packs.note_checked(path)
    assert packs.was_checked(path)
    path.write_bytes(b"other content")
    (tmp_path / ".x.safetensors.checked").unlink()
    (tmp_path / ".x.safetensors.checked").mkdir()  # in its way, as a read-only folder is
    packs.note_checked(path)
    assert not packs.was_checked(path)


@pytest.mark.parametrize("value", ["[1, 2]", "[]", "[a, a]"])
def test_a_wrong_list_of_folders_is_one_line(value):
    with pytest.raises(UserError, match=r"data\.folder should"):
        load(HERE / SMOKE, [f"data.folder={value}"])


def test_a_list_of_folders_survives_as_an_override_and_in_a_variant():
    config = load(HERE / SMOKE, ["data.folder=[~/a, /b]"])
    assert config.data.folders == (os.path.expanduser("~/a"), "/b")
    again = type(config).model_validate(config.model_dump(mode="json"))
    assert again.data.folders == config.data.folders


def test_latents_of_an_autoencoder_that_was_trained_again_are_said_with_their_size(tmp_path, capsys):
    """When a pack is written, and when latents are: folders of today's autoencoders, and all files, stay unnamed."""

    def autoencoder(name, value):
        save_export(tmp_path / name / "vae/export.safetensors", {"weight": torch.full((2,), value)}, {})
        return read_about(tmp_path / name / "vae/export.safetensors", "")["sha256"]

    def encode(sha256):
        images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
        from_pack(context, lambda part: part.float().mean((2, 3), keepdim=True), images, {"data": "d", "vae": sha256})

    context, words = context_with(f"root={tmp_path}"), "(0.0 GB) holds latents of an autoencoder that no experiment"
    encode(autoencoder("other", 3.0))
    encode(autoencoder("mine", 1.0))
    assert words not in capsys.readouterr().err
    (tmp_path / "mine/vae").rename(tmp_path / "mine/vae.old-1")  # as --fresh does
    before = {*(tmp_path / "packs").glob("latents-*/")}
    encode(autoencoder("mine", 2.0))
    said = [line for line in capsys.readouterr().err.splitlines() if words in line]
    (old,) = (f for f in before if f"{f} {words}" in said[0])
    assert len(said) == 1 and said[0].endswith(f"in {tmp_path} has; delete it if nothing else uses it")
    opened(tmp_path, write_folder(tmp_path / "d"))
    assert f"{old} {words}" in capsys.readouterr().err and old.is_dir() and len(before) == 2
