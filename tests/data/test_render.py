import math
from itertools import combinations

import numpy as np
from PIL import Image

from data.labels import CLEVR
from data.render import OBJECTS, RADIUS, RGB, draw_scenes, layout, picture_name
from data.render import test_sets as make_test_sets

SETTINGS = {"seed": 3, "size": 64, "samples": 4, "camera_distance": 9.5}


def test_objects_never_overlap_and_are_three_different_ones():
    for index in range(60):
        scene = layout(0, index, 9.5)
        assert len({item.name for item in scene.items}) == OBJECTS
        for a, b in combinations(scene.items, 2):
            assert math.hypot(a.x - b.x, a.y - b.y) > 2 * RADIUS * 1.2  # a turned cube reaches 1.16 radii


def test_a_scene_follows_from_seed_and_index():
    assert layout(0, 5, 9.5) == layout(0, 5, 9.5)
    assert layout(0, 5, 9.5) != layout(1, 5, 9.5)
    assert layout(0, 5, 9.5) != layout(0, 6, 9.5)


def test_the_same_seed_draws_the_same_files_and_goes_on_where_it_was(tmp_path):
    labels = draw_scenes(tmp_path / "a", range(3), **SETTINGS)
    assert list(labels) == [picture_name(i, k) for i in range(3) for k in (1, 2, 3)]
    assert [len(names) for names in labels.values()] == [1, 2, 3] * 3
    first = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    assert set(first) == set(labels)
    removed = tmp_path / "a" / picture_name(1, 2)
    removed.unlink()
    draw_scenes(tmp_path / "a", range(3), **SETTINGS)
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == first


def test_each_object_adds_its_colour(tmp_path):
    labels = draw_scenes(tmp_path / "a", range(4), **(SETTINGS | {"samples": 16}))
    for scene in range(4):
        pictures = [np.asarray(Image.open(tmp_path / "a" / picture_name(scene, k)), float) for k in (1, 2, 3)]
        for before, after, k in ((pictures[0], pictures[1], 2), (pictures[1], pictures[2], 3)):
            changed = np.abs(after - before).max(axis=2) > 40
            assert 40 < changed.sum() < 1200
            colour = np.array(RGB[labels[picture_name(scene, k)][-1].split()[0]], float)
            shown = np.median(after[changed], axis=0)
            if np.ptp(colour) > 60:  # a hue to compare: the strongest channel is the colour's
                assert colour[shown.argmax()] > colour.mean()


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
