import json
import math
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from data.labels import CLEVR, DataError
from data.places import read_places, read_turns
from data.render import RGB, _cores, draw_scene, draw_scenes
from data.scenes import OBJECTS, RADIUS, Item, Layout, Look, layout, picture_name, places_of, scene_poses, turns_of
from data.scenes import test_sets as make_test_sets

LOOK = Look(seed=0, camera_distance=9.5)
SETTINGS = {"look": Look(seed=3, camera_distance=9.5), "size": 64, "samples": 4}


def test_objects_never_overlap_and_are_three_different_ones():
    for index in range(60):
        scene = layout(index, LOOK)
        assert len({item.name for item in scene.items}) == OBJECTS
        for a, b in combinations(scene.items, 2):
            assert math.hypot(a.x - b.x, a.y - b.y) > 2 * RADIUS * 1.2  # a turned cube reaches 1.16 radii


def test_a_scene_follows_from_seed_and_index():
    assert layout(5, LOOK) == layout(5, LOOK)
    assert layout(5, LOOK) != layout(5, replace(LOOK, seed=1))
    assert layout(5, LOOK) != layout(6, LOOK)


def test_a_seed_means_the_same_scenes_and_label_sets_in_every_release():
    """Drawing goes on where it ended, and runs on drawn scenes are known by the settings: neither may mix two sets."""
    scene, sets = layout(5, LOOK), make_test_sets(0, objects=4)
    names = ["purple sphere", "brown cube", "brown sphere"]
    assert [item.name for item in scene.items] == names
    found = [(item.x, item.y, item.turn, item.roughness) for item in scene.items]
    wanted = [(-1.7346, -0.823, 282.1, 0.7), (1.2632, 0.5766, 356.15, 0.3), (-2.2229, 2.1996, 40.44, 0.3)]
    assert [pytest.approx(row, abs=0.01) for row in wanted] == found
    assert scene.camera == pytest.approx((6.1919, -5.3544, 5.8534), abs=1e-3)
    assert [strength for _, strength in scene.lamps] == pytest.approx([87.887, 72.046, 55.263], abs=1e-2)
    last = {name: rows[-1] for name, rows in sets.items()}
    assert last == {
        "test": ["green sphere", "yellow cylinder", "yellow sphere"],
        "new_test": ["purple cylinder", "yellow cylinder", "yellow cube"],
        "four": ["green cube", "brown cylinder", "cyan cube", "yellow cube"],
    }


def test_no_object_hides_another():
    for index in range(60):
        scene = layout(index, LOOK)
        places = places_of(index, scene, LOOK)[picture_name(index, OBJECTS)]
        assert min(math.dist(a, b) for a, b in combinations(places, 2)) > 0.25, "an object is about that wide"


def test_more_objects_find_room_and_do_not_overlap():
    five = Look(seed=0, camera_distance=11.0, objects=5)
    for index in range(5):
        items = layout(index, five).items
        assert len({item.name for item in items}) == 5
        for a, b in combinations(items, 2):
            assert math.hypot(a.x - b.x, a.y - b.y) > 2 * RADIUS * 1.2


def test_objects_without_room_are_one_error(monkeypatch):
    monkeypatch.setattr("data.scenes.CAMERAS", 3)
    with pytest.raises(DataError, match=r"no room for 6 objects in scene 0; raise render.camera_distance \(9.5\)"):
        layout(0, replace(LOOK, objects=6))


def test_without_series_a_scene_has_one_picture_of_any_number_of_objects(tmp_path):
    look = Look(seed=0, camera_distance=11.0, objects=4, series=False)
    counts = [len(layout(index, look).items) for index in range(200)]
    assert set(counts) == {1, 2, 3, 4}
    assert all(30 < counts.count(number) < 70 for number in range(1, 5))
    labels, places, _ = draw_scenes(tmp_path / "a", range(4), **(SETTINGS | {"look": look}))
    assert list(labels) == [picture_name(i, counts[i]) for i in range(4)]
    assert {path.name for path in (tmp_path / "a").iterdir()} == set(labels)
    assert [len(names) for names in labels.values()] == [len(row) for row in places.values()] == counts[:4]


def test_the_same_seed_draws_the_same_files_and_only_missing_ones_again(tmp_path):
    labels, *_ = draw_scenes(tmp_path / "a", range(3), **SETTINGS)
    assert list(labels) == [picture_name(i, k) for i in range(3) for k in (1, 2, 3)]
    assert [len(names) for names in labels.values()] == [1, 2, 3] * 3
    first = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    assert set(first) == set(labels)
    removed = tmp_path / "a" / picture_name(1, 2)
    removed.unlink()
    draw_scenes(tmp_path / "a", range(3), **SETTINGS)
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == first


def test_each_object_adds_its_colour(tmp_path):
    labels, *_ = draw_scenes(tmp_path / "a", range(4), **(SETTINGS | {"samples": 16}))
    for scene in range(4):
        pictures = [np.asarray(Image.open(tmp_path / "a" / picture_name(scene, k)), float) for k in (1, 2, 3)]
        for before, after, k in ((pictures[0], pictures[1], 2), (pictures[1], pictures[2], 3)):
            changed = np.abs(after - before).max(axis=2) > 40
            assert 40 < changed.sum() < 1200
            colour = np.array(RGB[labels[picture_name(scene, k)][-1].split()[0]], float)
            shown = np.median(after[changed], axis=0)
            if np.ptp(colour) > 60:  # a hue to compare: the strongest channel is the colour's
                assert colour[shown.argmax()] > colour.mean()


def test_places_are_where_the_objects_are(tmp_path):
    """Compares with the middle of the coloured pixels of a scene's first object."""
    labels, places, _ = draw_scenes(tmp_path / "a", range(8), **(SETTINGS | {"samples": 16}))
    assert {name: len(row) for name, row in places.items()} == {name: len(row) for name, row in labels.items()}
    errors = []
    for scene in range(8):
        first = picture_name(scene, 1)
        assert places[picture_name(scene, 3)][:1] == places[first]
        pixels = np.asarray(Image.open(tmp_path / "a" / first), float)
        rows, columns = np.nonzero(np.ptp(pixels, axis=2) > 60)  # the floor, its shadows and highlights are grey
        if len(rows) > 40:  # not a gray one
            x, y = ((side.min() + side.max() + 1) / 2 for side in (columns, rows))
            errors.append(math.dist(places[first][0], (x / 64, y / 64)) * 64)
    assert len(errors) >= 4
    assert max(errors) < 2.5, "an object is about 17 pixels across"
    assert np.mean(errors) < 1.5


def test_places_and_turns_need_no_drawing(tmp_path):
    _, places, turns = draw_scenes(tmp_path / "a", range(2), **SETTINGS)
    assert scene_poses(range(2), SETTINGS["look"]) == (places, turns)
    listed = {name: [0] * len(row) for name, row in places.items()}
    (tmp_path / "places.json").write_text(json.dumps(places))
    assert read_places(tmp_path / "places.json", listed) == places
    (tmp_path / "turns.json").write_text(json.dumps(turns))
    assert read_turns(tmp_path / "turns.json", listed) == turns


def test_a_turn_is_as_the_camera_sees_it(tmp_path, monkeypatch):
    """The camera goes round a cube that is turned with it: the turn stays, and so does the picture."""
    look, turns, pictures = SETTINGS["look"], [], []
    for i, azimuth in enumerate((0.0, 30.0, 350.0)):
        x, y = (10 * part(math.radians(azimuth)) for part in (math.cos, math.sin))
        scene = Layout((Item("red cube", 0.0, 0.0, 20.0 + azimuth, 0.7),), (x, y, 4.0), (((0.0, 0.0, 9.0), 150.0),))
        turns += turns_of(i, scene, Look(look.seed, look.camera_distance, 1))[picture_name(i, 1)]
        (tmp_path / str(i)).mkdir()
        pictures.append(drawn(scene, tmp_path / str(i), monkeypatch))
    assert turns == pytest.approx([20 / 360] * 3, abs=1e-5)
    assert max(np.abs(other - pictures[0]).mean() for other in pictures[1:]) < 2


def test_a_turn_just_below_a_whole_one_is_none():
    """`turns.json` takes numbers below 1."""
    scene = Layout((Item("red cube", 0.0, 0.0, 359.9999, 0.7),), (10.0, 0.0, 4.0), ())
    assert turns_of(0, scene, Look(0, 9.5, 1)) == {picture_name(0, 1): [0.0]}


@pytest.mark.parametrize(
    ("quota", "cores"), [("300000 100000", 3), ("50000 100000", 1), ("max 100000", 8), ("990000 1000", 8)]
)
def test_scenes_are_drawn_on_the_cores_that_a_container_grants(monkeypatch, quota, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr("data.render.Path.read_text", lambda path: quota)
    assert _cores() == cores


def drawn(scene, folder, monkeypatch):
    """Returns a picture (64, 64, 3) of a scene of one object."""
    import data.render

    monkeypatch.setattr(data.render, "layout", lambda *arguments: scene)
    draw_scene(0, folder, LOOK, 64, 16)
    return np.asarray(Image.open(folder / picture_name(0, 1)), float)


def test_test_sets_are_thirty_two_each_and_the_new_ones_are_confusable():
    sets = make_test_sets(0)
    assert {name: len(content) for name, content in sets.items()} == {"test": 32, "new_test": 32}
    for content in sets.values():
        assert all(len(set(names)) == len(names) and set(names) <= set(CLEVR.names) for names in content)
    for names in sets["new_test"]:
        for name in names:
            colour, shape = name.split()
            assert any(set(other.split()) & {colour, shape} for other in names if other != name)
    assert make_test_sets(0) == sets
    numbers = {name: Counter(map(len, content)) for name, content in sets.items()}
    assert numbers == {"test": {1: 6, 2: 12, 3: 14}, "new_test": {2: 12, 3: 20}}
    assert all(len({frozenset(names) for names in content}) == 32 for content in sets.values())


def test_scenes_of_more_objects_have_label_sets_of_as_many():
    sets = make_test_sets(0, objects=5)
    assert {name: {len(row) for row in rows} for name, rows in sets.items() if name in ("four", "five")} == {
        "four": {4},
        "five": {5},
    }
    assert all(len(rows) == 32 and all(len(set(row)) == len(row) for row in rows) for rows in sets.values())
    assert {name: sets[name] for name in ("test", "new_test")} == make_test_sets(0)


def silhouette(folder, monkeypatch, kind):
    """Returns the mask (rows, columns) of one red object in the middle, cut to its bounding box, and the box place."""
    alone = layout(0, LOOK)
    pixels = drawn(Layout((Item(f"red {kind}", 0.0, 0.0, 20.0, 0.7),), alone.camera, alone.lamps), folder, monkeypatch)
    mask = pixels[..., 0] - pixels[..., 1] > 25  # red, and neither the floor nor a highlight's white
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], (rows.mean(), columns.mean())


def test_each_shape_has_its_silhouette(tmp_path, monkeypatch):
    found = {}
    for kind in ("sphere", "cube", "cylinder"):
        (tmp_path / kind).mkdir()
        found[kind], place = silhouette(tmp_path / kind, monkeypatch, kind)
        assert max(abs(p - 31.5) for p in place) < 6, f"the {kind} is not where it was put: {place}"
    height, width = found["sphere"].shape
    assert abs(height - width) <= 2
    assert abs(found["sphere"].mean() - math.pi / 4) < 0.08, "a sphere shows as a disc"
    assert found["cylinder"].shape[0] > found["cylinder"].shape[1] + 2, "a cylinder is taller than wide"
    corners = {kind: mask[:2, :2].mean() + mask[:2, -2:].mean() for kind, mask in found.items()}
    assert corners["cylinder"] > corners["sphere"] or found["cylinder"].mean() > 0.85
    assert found["cube"].shape[1] > found["cylinder"].shape[1]


def test_objects_are_wholly_in_the_picture(tmp_path):
    draw_scenes(tmp_path / "a", range(12), **SETTINGS)
    for scene in range(12):
        first, whole = (np.asarray(Image.open(tmp_path / "a" / picture_name(scene, k)), float) for k in (1, 3))
        coloured = np.abs(whole - first).max(axis=2) > 60  # more than a shadow changes the floor
        rim = np.concatenate([coloured[0], coloured[-1], coloured[:, 0], coloured[:, -1]])
        assert not rim.any(), f"scene {scene} is cut off"


def test_a_failure_of_the_renderer_is_one_line(tmp_path):
    """Mitsuba's own messages have several lines."""

    def failing(scenes):
        raise RuntimeError("\n  while loading:\n  no such variant\n")

    with pytest.raises(DataError, match=r"while loading: no such variant\); check") as caught:
        draw_scenes(tmp_path, range(1), failing, workers=1, **SETTINGS)
    assert "\n" not in str(caught.value)
