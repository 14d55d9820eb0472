"""`make sample`: bad requests give one line, an asked place reaches the network, and each format holds the pictures."""

import pytest
from PIL import Image, ImageChops

from tests.conftest import HERE, make
from tests.helpers import assert_one_line

SMALL = ("--count", "1")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("red cube at 1.3 0.6", ["outside the picture", "red cube at 0.3 0.6"]),
        ("red cube at 0.3", ["'at 0.3' is not a place"]),
        ("red cube at 0.3 x", ["'at 0.3 x' is not a place"]),
        ("red cube at", ["is not a place"]),
        ("red cube at 0.3 0.6, cyan sphere at 0.3 0.61", ["are too close"]),
        ("red cube, red cube", ["appears twice"]),
        ("red car at 0.3 0.6", ["unknown object 'red car'"]),
        ("", ["empty label set"]),
        ("red cube at nan 0.5", ["is not a place"]),
    ],
)
def test_what_cannot_be_asked_is_one_line(stage, chain, tmp_path, text, parts):
    out = tmp_path / "x.png"
    arguments = ("--labels", text, "--out", str(out), f"root={chain}")
    assert_one_line(*stage("sample", *arguments), *parts)
    assert not out.exists()


def test_a_model_without_places_refuses_asked_places_in_one_line(stage, chain, tmp_path):
    arguments = ("--model", "gan", *SMALL, "--out", str(tmp_path / "x.png"), f"root={chain}")
    said = stage("sample", "--labels", "red cube at 0.3 0.6", *arguments)
    assert_one_line(*said, "this gan was trained without places", "gan.generator.entry=map")
    assert stage("sample", "--labels", "red cube", *arguments)[0] == 0


def test_an_asked_place_changes_the_picture_and_nothing_else_does(stage, chain, tmp_path):
    def drawn(text):
        out = tmp_path / "x.png"
        arguments = ("--labels", text, *SMALL, "--out", str(out), f"root={chain}")
        # a network of few steps knows little of places, which rounding to 8 bits would hide
        status, said = stage("sample", *arguments, "eval.guidance=100.0", "eval.interval=[0.0,1.0]")
        assert status == 0, said
        return Image.open(out).tobytes()

    one = drawn("red cube at 0.3 0.6, cyan sphere at 0.7 0.5")
    assert one == drawn(" Red  cube AT .3 6e-1 ,cyan sphere at 0.7 0.50")
    assert one != drawn("red cube at 0.3 0.3, cyan sphere at 0.7 0.5")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--labels", "pink cube"), "unknown object 'pink cube'"),
        (("--labels", "red cube", "--count", "0"), "--count 0"),
        (("--labels", "red cube", "--out", "x.bmp"), "--out x.bmp: choose a name that ends in .png"),
        (("--labels", "red cube", "--out", "x"), "or a folder, which ends in /"),
        (("--labels", "red cube", "--out", ""), "choose a name"),
        (("--labels", "red cube", "--out", "README.md/x.png"), "README.md is a file, not a folder"),
        (("--labels", "red cube", "--out", "README.md/"), "README.md is a file, not a folder"),
        (("--labels", "red cube", "--out", "x.gif", "--model", "gan"), "gan draws in one step"),
        (("--labels", "red cube", "--out", "x.webp", "--animate", "--model", "gan"), "gan draws in one step"),
        (("--labels", "red cube", "--out", "x.png", "--animate"), ".gif or .webp"),
        (("--labels", "red cube", "--out", "x/", "--animate"), "x/ is a folder"),
        (("--labels", "red cube", "ldm.stepz=3"), "unknown key ldm.stepz"),
        (("--labels", "red cube", "--steps", "2000"), "eval.steps (2000) exceeds ldm.timesteps"),
        (("--labels", "red cube", "--guidance", "3", "ldm.label_dropout=0", "eval.guidance=1"), "guidance 3 needs"),
        (("--labels", "red cube at 0.3 0.6", "--model", "ddpm"), "this ddpm was trained without places"),
    ],
)
def test_what_can_be_known_is_checked_where_nothing_is_trained_yet(stage, tmp_path, arguments, words):
    assert_one_line(*stage("sample", f"root={tmp_path}", *arguments), words)
    assert_one_line(*stage("sample", f"root={tmp_path}", "--check", *arguments), words)
    assert stage("sample", f"root={tmp_path}", "--check", "--labels", "red cube at 0.3 0.6") == (0, "")


def test_a_sheet_too_large_for_its_format_is_one_line(stage, chain, tmp_path):
    arguments = ("--labels", "red cube", "--count", "1000", "--out", str(tmp_path / "x.webp"), f"root={chain}")
    assert_one_line(*stage("sample", *arguments), "larger than WEBP allows (16383)", "name a folder")


def test_each_format_holds_the_pictures_and_folders_are_made(stage, chain, tmp_path):
    def drawn(out, *more):
        arguments = ("--labels", "red cube", "--count", "2", "--out", str(out), *more, f"root={chain}")
        status, said = stage("sample", *arguments)
        assert (status, said) == (0, f"{out}\n")
        return Image.open(out) if not out.is_dir() else None

    still = drawn(tmp_path / "a/b/x.png").convert("RGB")
    assert still.size == (2 * 66 * 2, 66 * 2)
    assert drawn(tmp_path / "c/x.webp").convert("RGB").tobytes() == still.tobytes()
    photo = drawn(tmp_path / "x.JPG")
    assert (photo.format, photo.size) == ("JPEG", still.size)
    assert sum(ImageChops.difference(photo, still).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))) < 12
    for out, more in ((tmp_path / "x.gif", ()), (tmp_path / "y.webp", ("--animate",))):
        moving = drawn(out, *more)
        assert (moving.n_frames, moving.info["loop"], moving.size) == (3, 0, still.size)  # eval.steps of the smoke run
        moving.seek(2)
        last = moving.convert("RGB")
        assert sum(ImageChops.difference(last, still).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))) < 12
    assert last.tobytes() == still.tobytes()  # of the WebP; a GIF has 256 colours
    (tmp_path / "there").mkdir()
    drawn(tmp_path / "there")
    assert [path.name for path in sorted((tmp_path / "there").iterdir())] == ["00.png", "01.png"]
    single = Image.open(tmp_path / "there/01.png")
    assert single.resize((128, 128), Image.Resampling.NEAREST).tobytes() == still.crop((132, 0, 260, 128)).tobytes()


def test_make_sample_trains_nothing_where_the_weights_are_there(tmp_path):
    shipped = "checkpoints/scenes/config.yaml"
    said = make("sample", "-n", f"SHIPPED={shipped}", "OUT=a b.gif", "FLAGS=--steps 4").stdout
    assert f'stages.use.sample --config "{shipped}"' in said and '--out "a b.gif" --steps 4' in said
    assert "stages.ldm" not in said
    for given in ("CONFIG=configs/demo.yaml", "SET=root=x", f"DATA={tmp_path}"):
        said = make("sample", "-n", given).stdout
        assert 'stages.use.sample --config "configs/demo.yaml"' in said and "--check" in said
    said = make("sample", "-n").stdout  # as a user types it
    assert ("stages.ldm" in said) != (HERE / shipped).is_file()
