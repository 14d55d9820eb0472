import json

import pytest
import torch

from data.labels import CLEVR, DataError, Vocabulary, read_conditions, read_picture_labels, read_vocabulary


def test_the_vocabulary_is_the_fact_sheets():
    assert len(CLEVR) == 24
    assert CLEVR.index["gray cube"] == 0
    assert CLEVR.index["gray sphere"] == 8
    assert CLEVR.index["yellow cylinder"] == 23


def test_text_to_labels_and_back():
    labels = CLEVR.parse(" Red  cube, CYAN sphere,grey cylinder ")
    assert labels.sum() == 3
    assert CLEVR.describe(labels) == ["red cube, cyan sphere, gray cylinder"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [("red cub", "did you mean 'red cube'"), ("red cube, red cube", "stands twice"), (" , ", "empty label set")],
)
def test_text_faults(text, fault):
    with pytest.raises(DataError, match=fault):
        CLEVR.parse(text)


def test_files_round_trip(tmp_path):
    (tmp_path / "objects.json").write_text(json.dumps(CLEVR.index))
    assert read_vocabulary(tmp_path / "objects.json") == CLEVR
    (tmp_path / "train.json").write_text(json.dumps({"a_0.png": ["red cube"], "a_1.png": ["red cube", "gray cube"]}))
    names, labels = read_picture_labels(tmp_path / "train.json", CLEVR)
    assert names == ["a_0.png", "a_1.png"]
    assert labels.sum(1).tolist() == [1, 2]
    (tmp_path / "test.json").write_text('[["yellow cylinder"]]')
    assert torch.equal(read_conditions(tmp_path / "test.json", CLEVR).argmax(1), torch.tensor([23]))


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
        ('{"a": 0, "a": 1}', "stands twice"),
        ("[]", "expected"),
        ('{"a": "0"}', "0 to 0"),
    ],
)
def test_vocabulary_faults(tmp_path, content, fault):
    (tmp_path / "objects.json").write_text(content)
    with pytest.raises(DataError, match=fault):
        read_vocabulary(tmp_path / "objects.json")


def test_own_names_keep_their_capitals_and_spelling():
    own = Vocabulary(["Dog", "grey wolf"])
    assert own.parse("dog, Grey Wolf").tolist() == [[1.0, 1.0]]


def test_withheld_sets_are_a_fixed_share_of_those_with_two_and_more():
    from itertools import combinations

    import torch

    from data.labels import withheld

    rows = torch.zeros(276 + 24, 24)
    for row, pair in zip(rows, combinations(range(24), 2), strict=False):
        row[list(pair)] = 1
    rows[276:] = torch.eye(24)
    hidden = withheld(rows, 0.1)
    assert 14 <= hidden.sum() <= 42
    assert not hidden[276:].any()
    assert torch.equal(withheld(rows.flip(0), 0.1), hidden.flip(0))
    assert (withheld(rows, 0.3) | ~hidden).all(), "a larger share withholds the same and more"
