"""`make places`: its rings, its counts, and its page."""

import json

import torch
from PIL import Image

from data.labels import CLEVR
from models.condition import Condition
from stages.experiments.places import COLOURS, MARKED, RING, chosen, known_by_slot, marked
from tests.data.folder import write_folder
from tests.helpers import assert_one_line

SCALE = MARKED // 64  # no rounding: 64 is a third of it
BLUE = torch.tensor([0, 0, 90], dtype=torch.uint8)[:, None, None].expand(3, 64, 64)


def test_a_ring_is_around_each_known_place_and_nowhere_else():
    picture = marked(BLUE, torch.tensor([[0.25, 0.75], [-1, -1], [0.5, 0.5]]))
    assert picture.shape == (3, 64 * SCALE, 64 * SCALE)
    for number, (x, y) in ((0, (0.25, 0.75)), (2, (0.5, 0.5))):
        colour = torch.tensor([int(COLOURS[number][i : i + 2], 16) for i in (1, 3, 5)])
        column, row = round(x * 64 * SCALE), round(y * 64 * SCALE)
        assert picture[:, row, column].tolist() == [0, 0, 90], "inside of the ring the picture shows"
        assert torch.equal(picture[:, row, column - RING].long(), colour)
    second = torch.tensor([int(COLOURS[1][i : i + 2], 16) for i in (1, 3, 5)])
    assert not (picture.long() == second[:, None, None]).all(0).any()


def test_known_places_are_counted_by_their_number_in_the_list():
    conditions = Condition.of_lists([[1], [1, 2], [3]], 4, [[(0, 0)], [None, (0.5, 0.5)], [None]])
    assert known_by_slot(conditions) == [(3, 1), (1, 1)]


def test_pictures_of_the_most_objects_are_shown_where_there_are_enough():
    rows = chosen(Condition.of_lists([[0], [0, 1]] * 40, 2))
    assert len(rows) == len(set(rows.tolist())) == 32
    assert (rows % 2 == 1).all()
    assert chosen(Condition.of_lists([[0], [0, 1]] * 10, 2)).tolist() == list(range(20))


def test_the_page(stage, tmp_path):
    folder = write_folder(tmp_path / "d", scenes=16)
    labels = json.loads((folder / "train.json").read_text())
    places = {name: [[0.1, 0.2], None, [0.9, i / 50]][: len(row)] for i, (name, row) in enumerate(labels.items())}
    (folder / "places.json").write_text(json.dumps(places))
    arguments = (f"root={tmp_path}", f"data.folder={folder}", "data.validation_every=4")
    status, said = stage("places", *arguments)
    assert status == 0, said
    assert "places of 64 of 96 objects, from places.json" in said
    result = json.loads((tmp_path / "smoke/places/report.json").read_text())
    assert result["known"] == [[36, 36], [24, 0], [12, 12]]
    assert Image.open(tmp_path / "smoke/places/places.png").width > 8 * 64 * SCALE
    assert len(result["shown"]) == 32
    trained = [name for name in labels if int(name[12:18]) % 4 != 3]
    for index, words in zip(result["pictures"], result["shown"], strict=True):
        objects, said = CLEVR.parse(words)
        assert [CLEVR.names[i] for i in objects] == labels[trained[index]]
        assert [p and list(p) for p in said] == [p and [round(v, 2) for v in p] for p in places[trained[index]]]


def test_a_folder_without_places_is_one_line(stage, tmp_path):
    folder = write_folder(tmp_path / "d", places=False)
    arguments = (f"root={tmp_path}", f"data.folder={folder}", "data.validation_every=3", "ldm.network.places=false")
    assert_one_line(*stage("places", *arguments), "no object has a known place", "places.json")
    (folder / "places.json").write_text('{"CLEVR_train_000000_0.png": [[2, 0.5]]}')
    assert_one_line(*stage("places", *arguments), "places.json", "are not places")


def test_pictures_of_any_size_are_enlarged_until_the_numbers_can_be_read():
    sides = [marked(BLUE[:, :1, :1].expand(3, size, size), torch.zeros(0, 2)).shape[1] for size in (32, 64, 128, 256)]
    assert sides == [192, 192, 256, 256]
