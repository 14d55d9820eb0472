import json
import re

import pytest
import torch

from data.fingerprints import fingerprint
from data.images import read_folder
from data.labels import DataError
from data.places import read_places, read_turns, recovered
from data.render import draw_scenes
from data.scenes import Look, objects_json
from tests.data.folder import write_folder

ONE, TWO = "CLEVR_train_000000_0.png", "CLEVR_train_000000_1.png"


def test_places_json_gives_each_object_of_the_list_its_place(tmp_path):
    folder = write_folder(tmp_path / "d")
    (folder / "places.json").write_text(json.dumps({ONE: [[0, 1]], TWO: [[0.25, 0.5], None]}))
    images = read_folder(folder, 3)
    assert images.places.shape == (18, 3, 2)
    assert images.places[0].tolist() == [[0, 1], [-1, -1], [-1, -1]]
    assert images.places[1].tolist() == [[0.25, 0.5], [-1, -1], [-1, -1]]
    assert (images.places[2:] == -1).all()
    assert images.found() == "places of 2 of 36 objects, from places.json"


def test_a_folder_without_places_json_has_no_places(tmp_path):
    images = read_folder(write_folder(tmp_path / "d", places=False), 3)
    assert (images.places == -1).all()
    assert images.found() == "no object has a known place"


def test_the_fingerprint_follows_the_places(tmp_path):
    folder = write_folder(tmp_path / "d", places=False)
    found = {fingerprint(folder, 3)}
    for content in ("{}", json.dumps({ONE: [[0.5, 0.5]]})):
        (folder / "places.json").write_text(content)
        found.add(fingerprint(folder, 3))
    assert len(found) == 3


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("[]", "expected"),
        ("{", "not valid JSON"),
        ('{"a.png": [null], "a.png": [null]}', "appears twice"),
        ('{"b.png": 3}', "expected"),
        ('{"c.png": [null]}', "'c.png' has no labels"),
        ('{"b.png": [[0.5, 0.5]]}', "b.png: 1 places for 2 objects"),
        ('{"a.png": [[0.5, 0.5], null]}', "a.png: 2 places for 1 objects"),
        ('{"a.png": [[0.5]]}', "are not places"),
        ('{"a.png": [[0.5, 1.01]]}', "are not places"),
        ('{"a.png": [[-0.1, 0.5]]}', "are not places"),
        ('{"a.png": [[NaN, 0.5]]}', "are not places"),
        ('{"a.png": [["0.5", 0.5]]}', "are not places"),
        ('{"a.png": [[true, 0.5]]}', "are not places"),
        ('{"a.png": [0.5]}', "are not places"),
        ('{"b.png": [[0.5, 0.5], [0.51, 0.51]]}', "two objects too close"),
    ],
)
def test_a_damaged_or_contradictory_file_gives_a_one_line_error(tmp_path, content, fault):
    assert_refused(read_places, tmp_path / "places.json", content, fault)


def assert_refused(read, path, content, fault):
    """Asserts that a file about the objects of two pictures is refused in one line, which names file and fault."""
    path.write_text(content)
    with pytest.raises(DataError, match=re.escape(fault)) as caught:
        read(path, {"a.png": [4], "b.png": [4, 7]})
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"a.png": [0.5, 0.5]}', "2 turns for 1 objects"),
        ('{"c.png": [0.5]}', "'c.png' has no labels"),
        ('{"a.png": [1]}', "are not turns"),
        ('{"a.png": [-0.1]}', "are not turns"),
        ('{"a.png": [NaN]}', "are not turns"),
        ('{"a.png": [true]}', "are not turns"),
        ('{"a.png": ["0.5"]}', "are not turns"),
        ('{"a.png": 0.5}', "expected"),
    ],
)
def test_turns_that_are_none_give_a_one_line_error(tmp_path, content, fault):
    assert_refused(read_turns, tmp_path / "turns.json", content, fault)


def test_a_broken_link_is_an_error(tmp_path):
    (tmp_path / "places.json").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"places\.json is missing"):
        read_places(tmp_path / "places.json", {})
    assert read_places(tmp_path / "other.json", {}) is None


def test_zero_is_a_place(tmp_path):
    (tmp_path / "places.json").write_text('{"a.png": [[0, 0]]}')
    assert read_places(tmp_path / "places.json", {"a.png": [4]}) == {"a.png": [(0.0, 0.0)]}


def test_places_recovered_from_drawn_scenes_are_correct(tmp_path):
    look = Look(seed=3, camera_distance=9.5)
    labels, true, _ = draw_scenes(tmp_path / "iclevr", range(10), look=look, size=64, samples=4)
    (tmp_path / "objects.json").write_text(objects_json())
    (tmp_path / "train.json").write_text(json.dumps(labels))
    images = read_folder(tmp_path, 5)
    assert images.source == "from the differences between pictures"
    (tmp_path / "places.json").write_text(json.dumps(true))
    given = read_folder(tmp_path, 5)
    assert given.source == "from places.json"
    known, present = images.places[..., 0] >= 0, images.objects >= 0
    assert given.places[present].min() >= 0
    assert known[present].float().mean() >= 0.95
    errors = 64 * (images.places - given.places)[known].norm(dim=1)
    assert errors.mean() < 1, "in pixels"


RAMP = torch.arange(64)
GREY, RED, CYAN = (60, 60, 60), (180, 40, 40), (40, 200, 200)


def floor():
    """Returns a floor (3, 64, 64) that is lighter towards the bottom."""
    return (90 + RAMP)[None, :, None].expand(3, 64, 64).clone()


def with_disc(picture, x, y, colour, radius=6):
    """Draws a disc with its middle at (x, y), in pixels, and its shadow to the left and below."""
    picture = picture.clone()

    def inside(across, down):
        return (RAMP + 0.5 - across)[None] ** 2 + (RAMP + 0.5 - down)[:, None] ** 2 < radius**2

    picture[:, inside(x - 4, y + 3)] = (picture[:, inside(x - 4, y + 3)] * 0.85).long()
    picture[:, inside(x, y)] = torch.tensor(colour)[:, None]
    return picture


def scenes(*discs):
    """Returns scenes of discs added one by one: pictures uint8, objects, and the scene of each picture."""
    pictures, objects, names = [], [], []
    for i, scene in enumerate(discs):
        picture = floor()
        for shown, disc in enumerate(scene, 1):
            picture = with_disc(picture, *disc)
            pictures.append(picture)
            objects.append([*range(shown), *[-1] * (3 - shown)])
            names.append(f"scene {i}")
    return torch.stack(pictures).to(torch.uint8), torch.tensor(objects), names


@pytest.mark.parametrize("first", [lambda i: (12 + 4 * i, 20 + 3 * i), lambda i: (31, 27)])
def test_discs_are_found_even_if_the_first_is_in_the_middle_of_every_scene(first):
    colours = (RED, CYAN, (200, 180, 40), (60, 60, 200), (30, 120, 30))
    discs = [[(*first(i), colours[i % 5]), (50, 12 + 2 * i, CYAN), (12, 52 - i, RED)] for i in range(10)]
    places = recovered(*scenes(*discs))
    for i, scene in enumerate(discs):
        true = torch.tensor([[x, y] for x, y, _ in scene]) / 64
        for shown in (1, 2, 3):
            row = places[3 * i + shown - 1]
            torch.testing.assert_close(row[:shown], true[:shown], atol=0.5 / 64, rtol=0)
            assert (row[shown:] == -1).all()


@pytest.mark.parametrize("size", [32, 128, 256])
def test_places_are_recovered_from_pictures_of_any_size(size):
    """Objects of the same share of the picture are found, with errors of less than a pixel of 64."""
    discs = [[(20 + i, 20, RED), (50, 12 + 2 * i, CYAN), (12, 52 - i, RED)] for i in range(10)]
    images, objects, names = scenes(*discs)
    scaled = torch.nn.functional.interpolate(images.float(), size=(size, size), mode="area").round().to(torch.uint8)
    found = recovered(scaled, objects, names)
    wanted = recovered(images, objects, names)
    assert torch.equal(found >= 0, wanted >= 0) and (wanted[objects >= 0] >= 0).all()
    assert 64 * (found - wanted).abs().max() < 1
    assert size < 64 or torch.equal(found, wanted)


def test_places_do_not_depend_on_how_many_pictures_are_compared_at_once(monkeypatch):
    parts = scenes(*[[(20 + i, 20, RED), (50, 12 + 2 * i, CYAN), (12, 52 - i, RED)] for i in range(10)])
    expected = recovered(*parts)
    monkeypatch.setattr("data.places.CHUNK", 7)
    assert torch.equal(recovered(*parts), expected)


def test_a_gray_object_in_front_of_a_coloured_one_is_found_whole():
    discs = [[(20, 20, RED), (28, 24, GREY)], [(40, 40, CYAN), (46, 33, GREY)]]
    places = recovered(*scenes(*discs))
    errors = (64 * places[[1, 3], 1] - torch.tensor([[28, 24], [46, 33]])).norm(dim=1)
    assert errors.max() < 3, "the part where the hue changes is 4.5 away"


def test_an_unclear_object_leaves_the_others_known():
    images, objects, names = scenes(*[[(20, 20, RED), (45, 20, CYAN), (20, 50, RED)]] * 4)
    images[1] = images[0]  # nothing was added, and then two at once
    places = recovered(images, objects, names)
    assert (places[:, 0] == -1).all(), "no floor is known from four scenes"
    assert (places[:3] == -1).all()
    for row in (5, 8, 11):
        torch.testing.assert_close(places[row, 1:] * 64, torch.tensor([[45.0, 20], [20, 50]]), atol=0.5, rtol=0)


def noise(images):
    return torch.randint(256, images.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def other_names(objects):
    """Renames objects, differently in pictures of one, two and three objects."""
    present = objects >= 0
    return torch.where(present, objects + 5 * present.sum(1, keepdim=True), -1)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda i, o, n: (noise(i), o, n), "other pictures under the names of series"),
        (lambda i, o, n: (i, other_names(o), n), "lists that do not continue each other"),
        (lambda i, o, n: (i, o, ["one"] * len(n)), "one name for all"),
        (lambda i, o, n: (i, o, list(map(str, range(len(n))))), "a name for each"),
        (lambda i, o, n: (torch.stack([i[0]] * len(i)), o, n), "the same picture again and again"),
        (lambda i, o, n: (i.roll(1, 0), o, n), "pictures in another order"),
    ],
)
def test_pictures_that_are_not_series_get_no_places(change, what):
    parts = scenes(*[[(20 + i, 20, RED), (45, 20 + i, CYAN), (20, 50, RED)] for i in range(8)])
    assert (recovered(*parts)[..., 0] >= 0).sum() == 6 * 8
    assert (recovered(*change(*parts)) == -1).all(), what
