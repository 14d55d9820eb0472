"""Bad requests to `make sample` give one line, and an asked place reaches the network."""

import pytest
from PIL import Image

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
        arguments = ("--labels", text, *SMALL, "--out", str(out), f"root={chain}", "eval.guidance=1.0")
        status, said = stage("sample", *arguments)
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
        (("--labels", "red cube", "--out", "x.jpg"), "--out x.jpg"),
        (("--labels", "red cube", "ldm.stepz=3"), "unknown key ldm.stepz"),
    ],
)
def test_what_can_be_known_is_checked_where_nothing_is_trained_yet(stage, tmp_path, arguments, words):
    assert_one_line(*stage("sample", f"root={tmp_path}", *arguments), words)
    assert_one_line(*stage("sample", f"root={tmp_path}", "--check", *arguments), words)
    assert stage("sample", f"root={tmp_path}", "--check", "--labels", "red cube at 0.3 0.6") == (0, "")
