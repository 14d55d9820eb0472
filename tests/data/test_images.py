import io
import json
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from data.images import _hold_out, _scene, decode, read_folder, read_test_sets, to_unit
from data.labels import CLEVR, DataError
from tests.data.folder import write_folder, zip_pictures


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_reads_a_folder_and_holds_out_whole_scenes(tmp_path):
    images = read_folder(write_folder(tmp_path / "d", scenes=6), validation_every=3)
    assert images.images.shape == (18, 3, 64, 64)
    assert images.images.dtype == torch.uint8
    assert images.held_out.tolist() == [False] * 12 + [True] * 6
    assert images.labels.sum(1).tolist() == [1, 2, 3] * 6
    train, objects, places, turns = images.part(False)
    assert len(train) == len(objects) == len(places) == 12 and turns is None
    assert [len(part) for part in images.part(True)[:3]] == [6, 6, 6]
    assert train.untyped_storage().data_ptr() == images.images.untyped_storage().data_ptr()  # a view, not a copy


def test_turns_are_read_for_the_pictures_that_have_them(tmp_path):
    folder = write_folder(tmp_path / "d", scenes=6)
    (folder / "turns.json").write_text('{"CLEVR_train_000000_1.png": [0.25, null], "CLEVR_train_000005_0.png": [0]}')
    images = read_folder(folder, validation_every=3)
    rows = torch.zeros(18, 3) - 1
    rows[1, 0], rows[15, 0] = 0.25, 0
    assert torch.equal(images.turns, rows)
    assert torch.equal(images.part(True)[3], rows[12:])
    (folder / "turns.json").write_text('{"CLEVR_train_000000_1.png": [null, null]}')
    assert read_folder(folder, validation_every=3).turns is None


def test_a_zip_reads_like_its_folder(tmp_path):
    folder = write_folder(tmp_path / "d")
    expected = read_folder(folder, 3).images
    zip_pictures(folder)
    with zipfile.ZipFile(folder / "iclevr.zip", "a") as archive:
        archive.writestr("__MACOSX/iclevr/._CLEVR_train_000000_0.png", b"junk")
    assert torch.equal(read_folder(folder, 3).images, expected), "beside the folder that it was unpacked to"
    shutil.rmtree(folder / "iclevr")
    assert torch.equal(read_folder(folder, 3).images, expected)


@pytest.mark.parametrize("packed", [False, True])
def test_suffixes_may_be_capitals_and_folders_of_a_mac_hold_no_pictures(tmp_path, packed):
    folder = write_folder(tmp_path / "d", places=False)
    expected = read_folder(folder, 3).images
    for path in list((folder / "iclevr").iterdir()):
        path.rename(path.with_suffix(".PNG"))
    text = (folder / "train.json").read_text()
    (folder / "train.json").write_text(text.replace(".png", ".PNG"))
    (folder / "iclevr/__MACOSX").mkdir()
    (folder / "iclevr/__MACOSX/._x.png").write_bytes(b"junk")
    if packed:
        zip_pictures(folder)
        shutil.rmtree(folder / "iclevr")
    assert torch.equal(read_folder(folder, 3).images, expected)


def test_a_zip_made_on_windows_reads_like_its_folder(tmp_path):
    folder = write_folder(tmp_path / "d")
    expected = read_folder(folder, 3).images
    zip_pictures(folder, "iclevr\\")
    shutil.rmtree(folder / "iclevr")
    assert torch.equal(read_folder(folder, 3).images, expected)


def test_a_validation_file_defines_the_split(tmp_path):
    folder = write_folder(tmp_path / "d")
    labels = json.loads((folder / "train.json").read_text())
    names = list(labels)
    (folder / "validation.json").write_text(json.dumps({n: labels.pop(n) for n in names[-3:]}))
    (folder / "train.json").write_text(json.dumps(labels))
    assert read_folder(folder, 2).held_out.tolist() == [False] * 15 + [True] * 3


def test_larger_pictures_are_resized_with_antialiasing(tmp_path):
    stripes = np.zeros((240, 320, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than 64 columns can show: antialiasing gives grey, picking pixels would not
    pixels = decode(encoded(Image.fromarray(stripes)), "x")
    assert pixels.shape == (3, 64, 64)
    assert abs(pixels.astype(float).mean() - 127.5) < 2
    assert pixels.std() < 8


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1"])
def test_other_modes_are_converted(mode):
    picture = Image.new("RGB", (64, 64), (200, 40, 40)).convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    colour = decode(encoded(picture, kind), "x").astype(float).mean(axis=(1, 2))
    grey = 0.299 * 200 + 0.587 * 40 + 0.114 * 40
    expected = {"L": [grey] * 3, "1": [grey] * 3}.get(mode, [200, 40, 40])
    assert colour == pytest.approx(expected, abs=6), mode  # JPEG's rounding, the 1-bit picture's dither


def test_a_transparent_colour_that_no_pixel_has_is_no_fault():
    assert decode(encoded(Image.new("P", (64, 64)), transparency=5), "x").shape == (3, 64, 64)


def test_a_picture_that_a_phone_took_on_its_side_is_read_upright():
    sky_above = Image.new("RGB", (64, 64), (20, 120, 20))
    sky_above.paste((90, 160, 250), (0, 0, 64, 32))
    told = Image.Exif()
    told[0x0112] = 6  # orientation: turn it clockwise by a quarter
    taken = encoded(sky_above.transpose(Image.Transpose.ROTATE_90), exif=told)
    assert np.array_equal(decode(taken, "x"), decode(encoded(sky_above), "x"))


def png_of_16_bits_a_channel() -> bytes:
    """Returns a grey-blue 8x8 PNG like a scanner's; Pillow reads it and silently drops half of the bits."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    rows = (b"\0" + struct.pack(">HHH", 30000, 30000, 60000) * 8) * 8
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "not a readable picture"),
        (png_of_16_bits_a_channel(), "16 or 32 bits"),
        (b"not a picture", "not a readable picture"),
        (encoded(Image.new("I;16", (64, 64))), "16 or 32 bits"),
        (encoded(Image.new("RGBA", (64, 64), (0, 0, 0, 90))), "transparent"),
        (encoded(Image.new("P", (64, 64)), transparency=0), "transparent"),
        (encoded(Image.new("RGB", (9000, 2))), "too many"),
        (
            encoded(Image.new("L", (8, 8)), "WEBP", save_all=True, append_images=[Image.new("L", (8, 8), 255)]),
            "animated",
        ),
        (
            encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))[:3000],
            "not a readable",
        ),
    ],
)
def test_refused_pictures(content, fault):
    with pytest.raises(DataError, match=fault):
        decode(content, "x.png")


def damage_missing_picture(folder):
    (folder / "iclevr" / "CLEVR_train_000002_1.png").unlink()


def damage_unreadable(folder):
    (folder / "iclevr" / "CLEVR_train_000002_1.png").write_bytes(b"\x89PNG\r\n")


def damage_unlabelled(folder):
    shutil.copy(folder / "iclevr" / "CLEVR_train_000002_1.png", folder / "iclevr" / "CLEVR_train_000009_0.png")


def damage_labels(labels):
    def damage(folder):
        content = json.loads((folder / "train.json").read_text())
        content["CLEVR_train_000002_1.png"] = labels
        (folder / "train.json").write_text(json.dumps(content))

    return damage


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda f: (f / "train.json").unlink(), r"train\.json is missing"),
        (lambda f: (f / "objects.json").unlink(), r"objects\.json is missing"),
        (lambda f: shutil.rmtree(f / "iclevr"), "neither images/ or iclevr/ nor a .zip of these names"),
        (damage_missing_picture, "CLEVR_train_000002_1.png is missing but has labels"),
        (damage_unreadable, "CLEVR_train_000002_1.png: not a readable picture"),
        (damage_unlabelled, "CLEVR_train_000009_0.png has no labels"),
        (damage_labels(["pink cube"]), "unknown object 'pink cube'"),
        (damage_labels(["red cube", "red cube"]), "appears twice"),
        (damage_labels([]), "empty label set"),
    ],
)
def test_errors_name_the_file_and_the_fix(tmp_path, damage, fault):
    folder = write_folder(tmp_path / "d")
    damage(folder)
    with pytest.raises(DataError, match=fault) as caught:
        read_folder(folder, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("every", [1, 20])
def test_a_split_without_training_or_held_out_pictures_is_one_line(tmp_path, every):
    with pytest.raises(DataError, match=r"or none are held out; change data\.validation_every"):
        read_folder(write_folder(tmp_path / "d"), every)


@pytest.mark.parametrize(
    "member",
    ["../CLEVR_train_000000_0.png", "/tmp/CLEVR_train_000000_0.png", "..\\CLEVR_train_000000_0.png"],
)
def test_zip_members_that_point_outside_are_refused(tmp_path, member):
    folder = write_folder(tmp_path / "d")
    with zipfile.ZipFile(folder / "iclevr.zip", "w") as archive:
        archive.writestr(member, (folder / "iclevr" / "CLEVR_train_000000_0.png").read_bytes())
    shutil.rmtree(folder / "iclevr")
    with pytest.raises(DataError, match="points outside"):
        read_folder(folder, 3)


def in_sub_folders(folder):
    """Moves a folder's pictures into images/a/b/ and images/c/, by scene so that they keep their order."""
    (folder / "iclevr").rename(folder / "images")
    (folder / "images/a/b").mkdir(parents=True)
    (folder / "images/c").mkdir()
    renamed = {}
    for path in (folder / "images").glob("*.png"):
        first = int(path.stem.split("_")[2]) < 3
        renamed[path.name] = f"{'a/b' if first else 'c'}/{path.name}"
        path.rename(folder / "images" / renamed[path.name])
    for file in ("train.json", "places.json"):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({renamed[name]: value for name, value in content.items()}))
    return folder


@pytest.mark.parametrize("form", ["folder", "zip", "zip of the folder", "zip of a folder of it"])
def test_pictures_may_be_in_sub_folders_of_images(tmp_path, form):
    expected = read_folder(write_folder(tmp_path / "plain"), 3)
    folder = in_sub_folders(write_folder(tmp_path / "d"))
    (folder / "images/.cache").mkdir()
    (folder / "images/.cache/small.png").write_bytes(b"")
    if form != "folder":
        above = {"zip": "", "zip of the folder": "images/", "zip of a folder of it": "data/images/"}[form]
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            for path in sorted((folder / "images").rglob("[!.]*.png")):
                if ".cache" not in path.parts:
                    archive.write(path, above + path.relative_to(folder / "images").as_posix())
        shutil.rmtree(folder / "images")
    found = read_folder(folder, 3)
    for name in ("images", "labels", "held_out", "places"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_pictures_of_one_name_in_two_sub_folders_are_two_and_of_two_scenes():
    assert _scene("a/x_0.png") == _scene("a/x_1.png") != _scene("b/x_1.png")
    assert _scene("CLEVR_train_002066_1.png") == "CLEVR_train_002066"


def test_pictures_are_scaled_to_the_size_that_is_asked_for(tmp_path):
    folder = write_folder(tmp_path / "d", size=(128, 128))
    whole, half = (read_folder(folder, 3, size).images for size in (128, 64))
    assert whole.shape[1:] == (3, 128, 128)
    name = next(iter(json.loads((folder / "train.json").read_text())))
    pixels = np.asarray(Image.open(folder / "iclevr" / name)).transpose(2, 0, 1)
    assert any(np.array_equal(image.numpy(), pixels) for image in whole), "not scaled at its own size"
    assert half.shape == (len(whole), 3, 64, 64)


def test_conditions(tmp_path):
    sets = read_test_sets(write_folder(tmp_path / "d"), CLEVR, ("test", "new_test"))
    asked = [[CLEVR.index[name] for name in names] for names in (["red cube"], ["cyan sphere", "gray cube"])]
    assert sets == {"test": asked, "new_test": asked}


def test_units():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert to_unit(images).min() == -1
    assert to_unit(images).max() == 1
    assert torch.equal(((to_unit(images) + 1) * 127.5).round().to(torch.uint8), images)


def test_pictures_and_labels_belong_together(tmp_path):
    folder = write_folder(tmp_path / "d")
    images = read_folder(folder, 3)
    labels = json.loads((folder / "train.json").read_text())
    held_out_last = sorted(labels, key=lambda name: name[12:18] in ("000002", "000005"))  # each third scene
    for i, (name, objects) in enumerate((name, labels[name]) for name in held_out_last):
        pixels = np.asarray(Image.open(folder / "iclevr" / name))
        assert np.array_equal(images.images[i].permute(1, 2, 0).numpy(), pixels)
        assert {CLEVR.names[k] for k in images.labels[i].nonzero().flatten().tolist()} == set(objects)
        shown = images.objects[i].tolist()
        assert [CLEVR.names[k] for k in shown[: len(objects)]] == objects, "in the order of the list"
        assert shown[len(objects) :] == [-1] * (3 - len(objects))


def test_names_without_scenes_are_split_picture_by_picture():
    assert _hold_out([f"photo_{i:04d}.png" for i in range(40)], 20).sum() == 2


def test_the_order_of_a_label_file_does_not_decide_which_scenes_are_held_out():
    names = [f"CLEVR_train_{scene:06d}_{k}.png" for scene in range(6) for k in range(3)]
    assert _hold_out(names[::-1], 4).tolist() == _hold_out(names, 4).tolist()[::-1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html><html>", "an HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (encoded(Image.new("RGB", (8, 8)), "GIF"), "a GIF; save it as PNG"),
        (encoded(Image.new("RGB", (8, 8)), "TIFF"), "a TIFF; save it as PNG"),
        (b"\x00\x00\x00\x18ftypheic", "a HEIC or AVIF picture"),
        (b"neither this nor that", "unknown format"),
    ],
)
def test_what_is_no_picture_is_named(content, words):
    with pytest.raises(DataError) as fault:
        decode(content, "x.png")
    assert words in str(fault.value) and "0x" not in str(fault.value)


def test_of_a_phone_s_multi_picture_jpeg_the_first_is_read():
    first, second = Image.new("RGB", (64, 64), (200, 0, 0)), Image.new("RGB", (64, 64), (0, 0, 200))
    content = encoded(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert np.abs(decode(content, "x.jpg").astype(int) - decode(encoded(first), "x.png").astype(int)).max() < 8


def test_pictures_of_a_kind_that_is_not_read_are_said_to_be(tmp_path):
    folder = write_folder(tmp_path / "d")
    labels = json.loads((folder / "train.json").read_text())
    name = next(iter(labels))
    (folder / "iclevr" / name).rename(folder / "iclevr" / "photo.heic")
    labels["photo.heic"] = labels.pop(name)
    (folder / "places.json").unlink()
    (folder / "train.json").write_text(json.dumps(labels))
    with pytest.raises(DataError, match=r"train\.json: photo\.heic is not a picture file that is read here \(\.png"):
        read_folder(folder, 3)
    apart = {"photo.heic": labels.pop("photo.heic")}
    for file, content in (("train", labels), ("validation", apart)):
        (folder / f"{file}.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"validation\.json: photo\.heic is not a picture file"):
        read_folder(folder, 3)
