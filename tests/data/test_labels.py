import json

import pytest
import torch

from data.labels import (
    CLEVR,
    DataError,
    Vocabulary,
    distinct,
    read_conditions,
    read_picture_labels,
    read_vocabulary,
    withheld,
)
from models.condition import Condition


def test_the_vocabulary_is_that_of_the_fact_sheet():
    assert len(CLEVR) == 24
    assert CLEVR.index["gray cube"] == 0
    assert CLEVR.index["gray sphere"] == 8
    assert CLEVR.index["yellow cylinder"] == 23


def test_text_to_objects_in_order_and_labels_back_to_text():
    objects, places = CLEVR.parse(" Red  cube, CYAN sphere,grey cylinder ")
    assert [CLEVR.names[i] for i in objects] == ["red cube", "cyan sphere", "gray cylinder"]
    assert places == [None, None, None]
    assert CLEVR.describe(Condition.of_lists([objects], len(CLEVR)).labels) == ["red cube, cyan sphere, gray cylinder"]


def test_text_with_places_and_back():
    objects, places = CLEVR.parse("cyan sphere at .2  1, Red Cube AT 0.3 6e-1,gray cube")
    assert [CLEVR.names[i] for i in objects] == ["cyan sphere", "red cube", "gray cube"]
    assert places == [(0.2, 1.0), (0.3, 0.6), None]
    rows = [[-1.0, -1.0] if place is None else list(place) for place in places]
    absent = torch.tensor([[*objects, -1]]), torch.tensor([[*rows, [-1.0, -1.0]]])
    (said,) = CLEVR.describe_placed(*absent)
    assert said == "cyan sphere at 0.20 1.00, red cube at 0.30 0.60, gray cube"
    assert CLEVR.parse(said) == (objects, places)


def test_an_object_at_the_left_edge_is_said_to_be_there():
    assert CLEVR.describe_placed(torch.tensor([[1]]), torch.tensor([[[0.0, 0.5]]])) == ["red cube at 0.00 0.50"]


def test_names_may_hold_the_word_at():
    own = Vocabulary(["cat", "cat at 0 1", "man at work"])
    assert own.parse("Cat at 0 1, man at work") == ([1, 2], [None, None])
    assert own.parse("man at work at 0 1, cat at 1 0, cat at 0 1 at .5 .5") == ([2, 0, 1], [(0, 1), (1, 0), (0.5, 0.5)])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("red cub", "did you mean 'red cube'"),
        ("red cube, red cube", "appears twice"),
        ("red cube at .1 .1, red cube at .9 .9", "appears twice"),
        (" , ", "empty label set"),
        ("red cub at .3 .6", "unknown object 'red cub'; did you mean 'red cube'"),
        ("at .3 .6", "unknown object"),
        ("red cube at", r"'at' is not a place; write 'red cube at 0\.3 0\.6'"),
        ("red cube at 0.3", r"'at 0\.3' is not a place; write 'red cube at 0\.3 0\.6'"),
        ("red cube at 0.3, 0.6", r"'at 0\.3' is not a place"),
        ("red cube at x y", "'at x y' is not a place"),
        ("red cube at 0.3 0.6 0.9", "is not a place"),
        ("red cube at 0.3 nan", "is not a place"),
        ("red cube at inf 0", "is not a place"),
        ("red cube at 0_1 0", "is not a place"),
        ("red cube at 0.3 1.01", "'at 0.3 1.01' is outside the picture"),
        ("red cube at -0.1 0.5", "outside the picture"),
        ("red cube at 1e999 0.5", "outside the picture"),
        ("red cube at .5 .5, gray cube, cyan sphere at .51 .51", "'red cube' and 'cyan sphere' are too close"),
    ],
)
def test_text_faults(text, fault):
    with pytest.raises(DataError, match=fault) as caught:
        CLEVR.parse(text)
    assert "\n" not in str(caught.value)


def test_files_round_trip(tmp_path):
    (tmp_path / "objects.json").write_text(json.dumps(CLEVR.index))
    assert read_vocabulary(tmp_path / "objects.json") == CLEVR
    (tmp_path / "train.json").write_text(json.dumps({"a_0.png": ["red cube"], "a_1.png": ["red cube", "gray cube"]}))
    red, gray = CLEVR.index["red cube"], CLEVR.index["gray cube"]
    assert read_picture_labels(tmp_path / "train.json", CLEVR) == {"a_0.png": [red], "a_1.png": [red, gray]}
    (tmp_path / "test.json").write_text('[["yellow cylinder"]]')
    assert read_conditions(tmp_path / "test.json", CLEVR) == [[23]]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("[[]]", "empty label set"),
        ("[]", "expected a list"),
        ('[["red cube", 3]]', "expected a list"),
        ('{"red cube": 1}', "expected a list"),
        ("[[", "not valid JSON"),
        ('[["pink cube"]]', "unknown object 'pink cube'"),
    ],
)
def test_condition_faults_name_the_file(tmp_path, content, fault):
    path = tmp_path / "test.json"
    path.write_text(content)
    with pytest.raises(DataError, match=fault) as caught:
        read_conditions(path, CLEVR)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"a": 0, "b": 2}', "0 to 1"),
        ('{"a": 0, "a": 1}', "appears twice"),
        ("[]", "expected"),
        ('{"a": "0"}', "'a' is \"0\"; write a whole number"),
        ('{"": 0}', "cannot be asked for"),
        ('{" ": 0}', "cannot be asked for"),
    ],
)
def test_vocabulary_faults(tmp_path, content, fault):
    (tmp_path / "objects.json").write_text(content)
    with pytest.raises(DataError, match=fault):
        read_vocabulary(tmp_path / "objects.json")


def test_own_names_keep_their_capitals_and_spelling():
    own = Vocabulary(["Dog", "grey wolf"])
    assert own.parse("dog, Grey Wolf") == ([0, 1], [None, None])


def test_withheld_sets_are_a_fixed_share_of_those_with_two_and_more():
    from itertools import combinations

    rows = torch.zeros(276 + 24, 24)
    for row, pair in zip(rows, combinations(range(24), 2), strict=False):
        row[list(pair)] = 1
    rows[276:] = torch.eye(24)
    dense, rows = rows, torch.full((len(rows), 2), -1, dtype=torch.int8)
    for row, labels in zip(rows, dense, strict=True):
        found = labels.nonzero().flatten()
        row[: len(found)] = found.to(torch.int8)
    hidden = withheld(rows, 0.1)
    assert 14 <= hidden.sum() <= 42
    assert not hidden[276:].any()
    assert torch.equal(withheld(rows.flip(0), 0.1), hidden.flip(0))
    assert torch.equal(withheld(rows.flip(1), 0.1), hidden), "the order of a list does not matter"
    assert (withheld(rows, 0.3) | ~hidden).all(), "a larger share withholds the same and more"


def test_which_sets_are_withheld_is_the_same_in_every_release():
    """A run is known by the share alone: other sets would be other pictures under its name."""
    pairs = torch.combinations(torch.arange(8))
    assert pairs[withheld(pairs, 0.3)].tolist() == [
        [0, 4],
        [0, 6],
        [1, 6],
        [2, 5],
        [2, 6],
        [3, 5],
        [3, 7],
        [4, 5],
        [4, 6],
    ]


@pytest.mark.parametrize("classes", [24, 40_000])
def test_distinct_label_sets_whatever_their_order_and_the_size_of_the_vocabulary(classes):
    last = classes - 1
    lists = torch.tensor([[3, last, -1, -1, -1], [0, -1, -1, -1, -1], [last, 3, -1, -1, -1], [3, 5, 0, 1, 2]])
    sets, which = distinct(lists)
    assert len(sets) == 3 and which[0] == which[2]
    assert [sorted(i for i in sets[w].tolist() if i >= 0) for w in which] == [
        [3, last],
        [0],
        [3, last],
        [0, 1, 2, 3, 5],
    ]


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "objects.json"
    path.write_text('{"red cube": 0, "cyan sphere": 1}', encoding="utf-8-sig")
    assert read_vocabulary(path).names == ["red cube", "cyan sphere"]


@pytest.mark.parametrize(
    ("content", "line", "fix"),
    [
        ('[["red cube"],\n ["cyan sphere"],\n]', 2, "remove the comma"),
        ('["red cube"]\n["cyan sphere"]', 2, "one value, not one a line"),
        ("[[", 1, "restore the file"),
    ],
)
def test_broken_json_says_where_and_what_to_do(tmp_path, content, line, fix):
    path = tmp_path / "test.json"
    path.write_text(content)
    with pytest.raises(DataError) as fault:
        read_conditions(path, CLEVR)
    assert fix in str(fault.value)
    assert f"line {line}" in str(fault.value) or f"line {line + 1}" in str(fault.value)  # by Python's version
