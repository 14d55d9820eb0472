"""Draws scenes that look like i-CLEVR with Mitsuba 3, in the lab's folder layout.

Objects are added one by one to a grey floor with fading light and soft shadows; the pictures `_0`, `_1`, `_2` of a
series share camera, lamps and the objects so far. Camera and lamps vary a little from scene to scene. Objects do not
overlap in space or hide each other. Scene i is determined by (seed, i) and the look of the scenes.
"""

import json
import math
import os
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial, reduce
from itertools import chain, combinations
from multiprocessing import get_context, parent_process
from operator import add
from pathlib import Path
from threading import Thread
from typing import TypeVar

import numpy as np
from PIL import Image

from data.labels import CLEVR, COLOURS, SHAPES, DataError, Place

Value = TypeVar("Value")
Drawn = tuple[dict[str, list[str]], dict[str, list[Place]]]  # object names and places, each by file name
Plugin = dict[str, object]  # a description that Mitsuba loads

# CLEVR's colours, sRGB 0..255 (arXiv 1612.06890, its properties.json)
RGB = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
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


def _linear(value: int) -> float:
    """Converts sRGB 0..255 to linear 0..1."""
    v = value / 255
    return v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4


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


def _by_picture(index: int, of_items: list[Value], look: Look) -> dict[str, list[Value]]:
    """Returns, per picture file of scene `index`, the values of the items that it shows, in order."""
    numbers = range(1 if look.series else len(of_items), len(of_items) + 1)
    return {picture_name(index, shown): of_items[:shown] for shown in numbers}


def _places(index: int, scene: Layout, look: Look) -> dict[str, list[Place]]:
    places = [_place(item, scene.camera) for item in scene.items]
    return _by_picture(index, [(round(x, 5), round(y, 5)) for x, y in places], look)


def scene_places(indices: range, look: Look) -> dict[str, list[Place]]:
    """Returns the places that `draw_scenes` returns for the same scenes, without drawing: about 3 ms a scene."""
    return dict(chain.from_iterable(_places(i, layout(i, look), look).items() for i in indices))


def _shapes(item: Item, transform: type) -> dict[str, Plugin]:
    """Returns an item as Mitsuba shapes on the floor."""
    colour, kind = item.name.split()
    bsdf = {
        "type": "principled",  # roughplastic builds tables at every load, which takes longer than drawing
        "base_color": {"type": "rgb", "value": [_linear(v) for v in RGB[colour]]},
        "roughness": item.roughness,
        "specular": 0.5,
    }
    place = transform().translate([item.x, item.y, 0]).rotate([0, 0, 1], item.turn)
    if kind == "sphere":
        return {"body": {"type": "sphere", "to_world": place.translate([0, 0, RADIUS]).scale(RADIUS), "bsdf": bsdf}}
    if kind == "cube":
        half = RADIUS * HALF_HEIGHT[kind]
        return {"body": {"type": "cube", "to_world": place.translate([0, 0, half]).scale(half), "bsdf": bsdf}}
    half = RADIUS * HALF_HEIGHT[kind]
    side = place.scale([half, half, 2 * half])
    lid = place.translate([0, 0, 2 * half]).scale(half)
    return {
        "side": {"type": "cylinder", "to_world": side, "bsdf": bsdf},
        "lid": {"type": "disk", "to_world": lid, "bsdf": bsdf},
    }


def _mitsuba_scenes(scene: Layout, shown: int, size: int, samples: int, transform: type) -> list[Plugin]:
    """Returns the scene once under each lamp, to be drawn and added up.

    An integrator that chooses a lamp at random would need ten times the samples for the same noise.
    """
    (place, strength), *points = scene.lamps  # the key lamp has a size, for soft shadows
    lamps: list[Plugin] = [
        {"type": "sphere", "center": list(place), "radius": 0.7, "emitter": _grey("area", "radiance", strength)}
    ]
    lamps += [{"position": list(place), **_grey("point", "intensity", strength)} for place, strength in points]
    common: Plugin = {
        "type": "scene",
        "integrator": {"type": "direct", "emitter_samples": 1, "bsdf_samples": 0, "hide_emitters": True},
        "sensor": {
            "type": "perspective",
            "fov": FIELD_OF_VIEW,
            "to_world": transform().look_at(origin=list(scene.camera), target=[0, 0, RADIUS], up=[0, 0, 1]),
            "film": {"type": "hdrfilm", "width": size, "height": size, "rfilter": {"type": "gaussian"}},
            "sampler": {"type": "stratified", "sample_count": samples},
        },
        "floor": {
            "type": "rectangle",
            "to_world": transform().scale(60),
            "bsdf": {"type": "diffuse", "reflectance": {"type": "rgb", "value": 0.42}},
        },
    }
    for i, item in enumerate(scene.items[:shown]):
        common |= {f"item{i}_{part}": shape for part, shape in _shapes(item, transform).items()}
    return [{**common, "lamp": lamp} for lamp in lamps]


def _grey(kind: str, unit: str, value: float) -> Plugin:
    return {"type": kind, unit: {"type": "rgb", "value": value}}


def picture_name(index: int, shown: int) -> str:
    """Returns the file name of scene `index` with its first `shown` objects, numbered as in i-CLEVR."""
    return f"CLEVR_train_{index:06d}_{shown - 1}.png"


def draw_scene(index: int, folder: Path, look: Look, size: int, samples: int) -> Drawn:
    """Draws the missing pictures of one scene. Returns the object names and places of all its pictures."""
    scene = layout(index, look)
    labels = _by_picture(index, [item.name for item in scene.items], look)
    missing = [name for name in labels if not (folder / name).exists()]
    if missing:
        import mitsuba as mi  # only in the processes that draw

        mi.set_variant("scalar_rgb")
        mi.set_log_level(mi.LogLevel.Error)
        for name in missing:
            passes = _mitsuba_scenes(scene, len(labels[name]), size, samples, mi.ScalarTransform4f)
            of_scene = mi.UInt32(index)
            image = reduce(add, (mi.TensorXf(mi.render(mi.load_dict(p), spp=samples, seed=of_scene)) for p in passes))
            _write_picture(np.array(mi.util.convert_to_bitmap(image)), folder / name)
    return labels, _places(index, scene, look)


def _write_picture(pixels: np.ndarray, path: Path) -> None:
    """Writes (h, w, 3) uint8 as a whole PNG or not at all. Mitsuba's writer does not report a full disk."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        Image.fromarray(pixels).save(temporary, "PNG")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise (OSError(error.errno, error.strerror, str(path)) if error.errno else error) from None


def _end_with_the_parent() -> None:
    parent = parent_process()
    assert parent is not None  # this is a worker
    parent.join()  # also if it was killed: a worker without it would wait for work for ever
    os._exit(1)


def _quiet_worker() -> None:
    """Makes a worker leave signals to its parent, end with it and draw on one thread: the pool fills the cores."""
    import signal

    import drjit

    Thread(target=_end_with_the_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    drjit.set_thread_count(1)


def _cores() -> int:
    """Returns how many cores this process may use: those it is bound to, within its quota (Linux, cgroup v2)."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
    except (OSError, ValueError):  # another system; "max": no quota
        return bound
    return max(1, min(bound, quota // period))


def draw_scenes(
    folder: Path,
    indices: range,
    progress: Callable[[Iterable[Drawn]], Iterable[Drawn]] = iter,
    workers: int | None = None,
    *,
    look: Look,
    size: int,
    samples: int,
) -> Drawn:
    """Draws scenes `indices` into `folder` on all cores, `size` pixels a side. `progress` wraps the iterator.

    Returns {file name: object names} and {file name: places of the objects}, each in the order of adding. Pictures that
    exist are kept, so an interrupted call can continue; each is written whole or not at all. Raises DataError if
    drawing fails, OSError if writing fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".*.png"):  # left by a killed call
        stale.unlink(missing_ok=True)
    draw = partial(draw_scene, folder=folder, look=look, size=size, samples=samples)
    labels: dict[str, list[str]] = {}
    places: dict[str, list[Place]] = {}
    drawn = 0
    pool = ProcessPoolExecutor(workers or _cores(), get_context("spawn"), _quiet_worker)
    try:
        for names, where in progress(pool.map(draw, indices, chunksize=8)):
            labels |= names
            places |= where
            drawn += 1
    except BrokenProcessPool:
        raise DataError(
            f"{folder}: a drawing process was killed (out of memory?); run the same command to continue"
        ) from None
    except (ImportError, RuntimeError) as error:
        raise DataError(f"{folder}: drawing failed ({type(error).__name__}: {str(error)[:100]})") from error
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate() if drawn < len(indices) else None
        pool.shutdown(wait=True, cancel_futures=True)
    return labels, places


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


def test_sets(seed: int) -> dict[str, list[list[str]]]:
    """Draws two test sets of 32 label sets each.

    `test` has 6 of one, 12 of two, 14 of three objects, as the lab's. The harder `new_test` has 12 of two, 20 of three,
    whose objects share colours or shapes.
    """
    rng = random.Random(f"{seed}/test sets")
    easy = [_pick(rng, n, size, lambda names: True) for n, size in ((6, 1), (12, 2), (14, 3))]
    hard = [_pick(rng, n, size, _confusable) for n, size in ((12, 2), (20, 3))]
    return {"test": list(chain(*easy)), "new_test": list(chain(*hard))}


def objects_json() -> str:
    """Returns the vocabulary in the lab's JSON format."""
    assert len(CLEVR) == len(SHAPES) * len(COLOURS)
    return json.dumps(CLEVR.index)
