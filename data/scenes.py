"""Lays out scenes that look like i-CLEVR's (objects, camera, lamps) and chooses label sets to ask for. Draws nothing.

Objects do not overlap in space or hide each other. Camera and lamps vary a little from scene to scene. Scene i is
determined by (seed, i) and the look of the scenes.
"""

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations
from typing import TypeVar

from data.labels import CLEVR, COLOURS, SHAPES, DataError, Place

Value = TypeVar("Value")

RADIUS = 0.75  # of a sphere, in scene units; cubes and cylinders have about its volume
FLOOR = 2.6  # objects are within this distance of the middle, along both axes
WIDER_FLOOR = 3.0  # the same where there are more than an i-CLEVR scene's
CAMERAS = 2000  # tried for one scene, until one has room for its objects
OBJECTS = 3  # in an i-CLEVR scene
FIELD_OF_VIEW = 35.0  # degrees
HALF_HEIGHT = {"cube": 0.82, "sphere": 1.0, "cylinder": 0.85}  # height of an object's centre, in radii


@dataclass(frozen=True)
class Item:
    """One object: its name, position, rotation (degrees) and roughness."""

    name: str
    x: float
    y: float
    turn: float
    roughness: float


@dataclass(frozen=True)
class Look:
    """What all scenes of a set share.

    With `series` a scene has `objects` objects and a picture for each that is added, as in i-CLEVR. Without, it has
    one picture of 1 to `objects` objects, each number equally often.
    """

    seed: int
    camera_distance: float
    objects: int = OBJECTS
    series: bool = True


@dataclass(frozen=True)
class Layout:
    """One scene before it is drawn."""

    items: tuple[Item, ...]
    camera: tuple[float, float, float]
    lamps: tuple[tuple[tuple[float, float, float], float], ...]  # key, fill, and one at the camera: position, strength


def _on_screen(camera: tuple[float, float, float], x: float, y: float, z: float = RADIUS) -> tuple[float, float, float]:
    """Projects a point, by default at object height, to picture coordinates, with an object's radius there.

    All are in units of half a picture, to the right and upwards from the middle.
    """
    cx, cy, cz = camera
    forward = [-cx, -cy, RADIUS - cz]
    length = math.hypot(*forward)
    f = [v / length for v in forward]
    norm = math.hypot(f[0], f[1])
    right = [f[1] / norm, -f[0] / norm, 0.0]
    up = [right[1] * f[2] - right[2] * f[1], right[2] * f[0] - right[0] * f[2], right[0] * f[1] - right[1] * f[0]]
    d = [x - cx, y - cy, z - cz]
    depth = sum(a * b for a, b in zip(d, f, strict=True))
    scale = 1 / (depth * math.tan(math.radians(FIELD_OF_VIEW / 2)))
    u, v = (sum(a * b for a, b in zip(d, axis, strict=True)) * scale for axis in (right, up))
    return u, v, RADIUS * scale


def _fits(camera: tuple[float, float, float], placed: list[Item], x: float, y: float) -> bool:
    """Returns True if an object at (x, y) is wholly in the picture and overlaps and hides no other."""
    u, v, r = _on_screen(camera, x, y)
    if max(abs(u), abs(v)) + 1.65 * r > 1:
        return False
    for item in placed:
        if math.hypot(x - item.x, y - item.y) < 2.9 * RADIUS:
            return False
        other_u, other_v, other_r = _on_screen(camera, item.x, item.y)
        if math.hypot(u - other_u, v - other_v) < 1.3 * (r + other_r):
            return False
    return True


def layout(index: int, look: Look) -> Layout:
    """Returns scene `index`: objects, their positions, camera and lamps. Pure: draws nothing.

    Raises DataError if the picture has no room for the objects.
    """
    rng = random.Random(f"{look.seed}/{index}")
    number = look.objects if look.series else random.Random(f"{look.seed}/{index}/number").randint(1, look.objects)
    names = rng.sample(CLEVR.names, number)
    floor = FLOOR if look.objects <= OBJECTS else WIDER_FLOOR
    for _ in range(CAMERAS):  # for three objects nearly always the first has room
        azimuth = math.radians(-43 + rng.uniform(-6, 6))
        elevation = math.radians(30 + rng.uniform(-3, 3))
        distance = look.camera_distance * rng.uniform(0.96, 1.04)
        flat = distance * math.cos(elevation)
        camera = (flat * math.cos(azimuth), flat * math.sin(azimuth), distance * math.sin(elevation) + RADIUS)
        items: list[Item] = []
        for name in names:
            for _ in range(200):
                x, y = rng.uniform(-floor, floor), rng.uniform(-floor, floor)
                if _fits(camera, items, x, y):
                    items.append(Item(name, x, y, rng.uniform(0, 360), rng.choice((0.3, 0.7))))
                    break
            else:
                break
        if len(items) == number:
            break
    else:
        raise DataError(
            f"render.objects={look.objects}: no room for {number} objects in scene {index}; "
            f"raise render.camera_distance ({look.camera_distance:g})"
        )
    jitter = partial(rng.uniform, -0.8, 0.8)
    key = (6.0 + jitter(), -1.0 + jitter(), 7.5 + jitter())
    fill = (-1.5 + jitter(), -8.0 + jitter(), 6.0 + jitter())
    strength = partial(rng.uniform, 0.9, 1.1)
    lamps = ((key, 95 * strength()), (fill, 70 * strength()), (camera, 60 * strength()))
    return Layout(tuple(items), camera, lamps)


def _place(item: Item, camera: tuple[float, float, float]) -> Place:
    """Returns the place of an object's middle in the picture."""
    u, v, _ = _on_screen(camera, item.x, item.y, RADIUS * HALF_HEIGHT[item.name.split()[1]])
    return (1 + u) / 2, (1 - v) / 2


def _turn(item: Item, camera: tuple[float, float, float]) -> float:
    """Returns how far an object is turned about the vertical, as the camera sees it, in [0, 1) of a full turn."""
    return (item.turn - math.degrees(math.atan2(camera[1], camera[0]))) / 360 % 1


def by_picture(index: int, of_items: list[Value], look: Look) -> dict[str, list[Value]]:
    """Returns, per picture file of scene `index`, the values of the items that it shows, in order."""
    numbers = range(1 if look.series else len(of_items), len(of_items) + 1)
    return {picture_name(index, shown): of_items[:shown] for shown in numbers}


def places_of(index: int, scene: Layout, look: Look) -> dict[str, list[Place]]:
    """Returns, per picture file of scene `index`, the places of the items that it shows, in order."""
    places = [_place(item, scene.camera) for item in scene.items]
    return by_picture(index, [(round(x, 5), round(y, 5)) for x, y in places], look)


def turns_of(index: int, scene: Layout, look: Look) -> dict[str, list[float]]:
    """Returns, per picture file of scene `index`, how the items that it shows are turned, in order."""
    return by_picture(index, [round(_turn(item, scene.camera), 5) % 1 for item in scene.items], look)


def scene_poses(indices: range, look: Look) -> tuple[dict[str, list[Place]], dict[str, list[float]]]:
    """Returns the places and turns that `draw_scenes` returns for the same scenes, undrawn: about 3 ms a scene."""
    places: dict[str, list[Place]] = {}
    turns: dict[str, list[float]] = {}
    for i in indices:
        scene = layout(i, look)
        places |= places_of(i, scene, look)
        turns |= turns_of(i, scene, look)
    return places, turns


def picture_name(index: int, shown: int) -> str:
    """Returns the file name of scene `index` with its first `shown` objects, numbered as in i-CLEVR."""
    return f"CLEVR_train_{index:06d}_{shown - 1}.png"


def _pick(rng: random.Random, number: int, size: int, rule: Callable[[tuple[str, ...]], bool]) -> list[list[str]]:
    """Draws `number` different sets of `size` names for which `rule` is true."""
    allowed = [names for names in combinations(CLEVR.names, size) if rule(names)]
    return [rng.sample(names, size) for names in rng.sample(allowed, number)]


def _confusable(names: tuple[str, ...]) -> bool:
    """Returns True if each name shares its colour or its shape with another."""
    words = [name.split() for name in names]
    return all(
        any(c == oc or s == os_ for j, (oc, os_) in enumerate(words) if i != j) for i, (c, s) in enumerate(words)
    )


MANY = {4: "four", 5: "five", 6: "six"}  # file names of label sets of more objects than i-CLEVR's


def test_sets(seed: int, objects: int = OBJECTS) -> dict[str, list[list[str]]]:
    """Draws test sets of 32 label sets each, two and one more for each number of objects above three.

    `test` has 6 of one, 12 of two, 14 of three objects, as the lab's. The harder `new_test` has 12 of two, 20 of three,
    whose objects share colours or shapes. `four`, `five` and `six` have as many objects in each set.
    """
    rng = random.Random(f"{seed}/test sets")
    easy = [_pick(rng, n, size, lambda names: True) for n, size in ((6, 1), (12, 2), (14, 3))]
    hard = [_pick(rng, n, size, _confusable) for n, size in ((12, 2), (20, 3))]
    many = {
        name: [random.Random(f"{seed}/{name}/{i}").sample(CLEVR.names, size) for i in range(32)]
        for size, name in MANY.items()
        if size <= objects
    }
    return {"test": list(chain(*easy)), "new_test": list(chain(*hard)), **many}


def objects_json() -> str:
    """Returns the vocabulary in the lab's JSON format."""
    assert len(CLEVR) == len(SHAPES) * len(COLOURS)
    return json.dumps(CLEVR.index)
