"""Draws scenes with Mitsuba 3, in the lab's folder layout.

Objects are added one by one to a grey floor with fading light and soft shadows; the pictures `_0`, `_1`, `_2` of a
series share camera, lamps and the objects so far.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial, reduce
from multiprocessing import get_context, parent_process
from operator import add
from pathlib import Path
from threading import Thread

import numpy as np
from PIL import Image

from data.labels import DataError, Place
from data.scenes import FIELD_OF_VIEW, HALF_HEIGHT, RADIUS, Item, Layout, Look, by_picture, layout, places_of, turns_of

# object names, places and turns, each by file name
Drawn = tuple[dict[str, list[str]], dict[str, list[Place]], dict[str, list[float]]]
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


def _linear(value: int) -> float:
    """Converts sRGB 0..255 to linear 0..1."""
    v = value / 255
    return v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4


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


def draw_scene(index: int, folder: Path, look: Look, size: int, samples: int) -> Drawn:
    """Draws the missing pictures of one scene. Returns what all its pictures show."""
    scene = layout(index, look)
    labels = by_picture(index, [item.name for item in scene.items], look)
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
    return labels, places_of(index, scene, look), turns_of(index, scene, look)


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

    Returns {file name: object names}, {file name: places of the objects} and {file name: their turns}, each in the
    order of adding. Pictures that exist are kept, so an interrupted call can continue; each is written whole or not at
    all. Raises DataError if drawing fails, OSError if writing fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".*.png"):  # left by a killed call
        stale.unlink(missing_ok=True)
    draw = partial(draw_scene, folder=folder, look=look, size=size, samples=samples)
    labels: dict[str, list[str]] = {}
    places: dict[str, list[Place]] = {}
    turns: dict[str, list[float]] = {}
    drawn = 0
    pool = ProcessPoolExecutor(workers or _cores(), get_context("spawn"), _quiet_worker)
    try:
        for names, where, turned in progress(pool.map(draw, indices, chunksize=8)):
            labels |= names
            places |= where
            turns |= turned
            drawn += 1
    except BrokenProcessPool:
        raise DataError(
            f"{folder}: a drawing process was killed (out of memory?); run the same command to continue"
        ) from None
    except (ImportError, RuntimeError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"  # Mitsuba's messages have several lines
        raise DataError(
            f"{folder}: drawing failed ({why}); check that Mitsuba runs here, then run the same command to continue"
        ) from error
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate() if drawn < len(indices) else None
        pool.shutdown(wait=True, cancel_futures=True)
    return labels, places, turns
