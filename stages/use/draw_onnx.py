"""Draws a picture from this folder with numpy and onnxruntime: python draw.py "red cube at 0.3 0.6, cyan sphere"."""

import argparse
import functools
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
opened = functools.cache(lambda path: onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]))


def run(file, **inputs):
    graph = opened(HERE / file)
    return graph.run(None, {i.name: inputs[i.name] for i in graph.get_inputs()})[0]


def draw(model, noise, **condition):
    """Noise (1, c, h, w); objects (1, m), places (1, m, 2), turns (1, m), -1 for none -> (1, 3, s, s) in [-1, 1]."""
    x, estimate = noise, np.zeros_like(noise)
    for t, guidance, *factors in model["steps"]:  # DDIM, arXiv 2010.02502, eq. 12
        keep = np.array([True, False] if guidance not in (0, 1) else [guidance == 1])
        p, q, a, b = np.float32(factors)
        rows = {"x": x, "t": np.int64([t]), "estimate": estimate, **condition}
        found = run(model["denoiser"], keep=keep, **{k: v.repeat(len(keep), axis=0) for k, v in rows.items()})
        x, estimate = p * x + q * (found[-1:] + guidance * (found[:1] - found[-1:])), a * x + b * found[:1]
    return run(model["decoder"], x=x)


def read(labels, names):
    """Reads "red cube at 0.3 0.6, cyan sphere" as indices into `names` and places, None where none is given."""
    known = {" ".join(name.lower().split()): i for i, name in enumerate(names)}
    objects, places = [], []
    for part in filter(None, (" ".join(part.split()) for part in labels.lower().split(","))):
        name, _, words = (part, "", "") if part in known or " at " not in part else part.rpartition(" at ")
        name = name if name in known else name.replace("grey", "gray")
        if name not in known:
            raise ValueError(f"unknown object {name!r}; choose from {', '.join(names)}")
        if known[name] in objects:
            raise ValueError(f"{name!r} appears twice; name it once")
        objects.append(known[name])
        places.append(place_of(words) if words else None)
    if not objects:
        raise ValueError(f"no object is asked for; name at least one of {', '.join(names)}")
    return objects, places


def place_of(words):
    try:
        x, y = map(float, words.split())
    except ValueError:
        x = y = -1.0
    if not (0 <= x <= 1 and 0 <= y <= 1):  # nan neither
        raise ValueError(f"{words!r} is not a place; write x and y in [0, 1], such as red cube at 0.3 0.6")
    return x, y


def completed(places, layouts, random):
    """Gives objects without a place those of a training layout: any, or, beside given places, the most spread one."""
    missing, m = np.array([[place is None] for place in places]), len(places)
    found = np.where(missing, layouts[str(m)], np.float32([place or (0, 0) for place in places]))
    gaps = np.linalg.norm(found[:, :, None] - found[:, None], axis=-1) + 9 * np.eye(m)
    return random.choice(found) if missing.all() else found[gaps.min((1, 2)).argmax()]


def png(picture):
    """Encodes (3, h, w) in [-1, 1] as a PNG file."""
    rows = (picture * 127.5 + 127.5).round().astype(np.uint8).transpose(1, 2, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">2I5B", *rows.shape[1::-1], 8, 2, 0, 0, 0)
    parts = b"IHDR" + header, b"IDAT" + zlib.compress(lines), b"IEND"
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(f">I{len(p)}sI", len(p) - 4, p, zlib.crc32(p)) for p in parts)


def main():
    config = json.loads((HERE / "config.json").read_text())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels")
    parser.add_argument("--out", default="drawn.png")
    parser.add_argument("--model", choices=config["models"], default=next(iter(config["models"])))
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    model = config["models"][a.model]
    try:
        asked, places = read(a.labels, config["objects"])
    except ValueError as error:
        parser.error(str(error))
    if a.seed < 0:
        parser.error(f"--seed {a.seed}: must be at least 0")
    random = np.random.default_rng(a.seed)
    if any(places) and not model["takes_places"]:
        parser.error(f"{a.model} takes no places: leave them out")
    if model["layouts"] and None in places:
        layouts = np.load(HERE / model["layouts"])
        if str(len(places)) not in layouts:
            parser.error(f"no training picture has {len(places)} objects: write a place for each")
        places = completed(places, layouts, random)
    places = np.float32([[(-1, -1) if place is None else place for place in places]])
    objects = np.int64([asked])
    noise = random.standard_normal((1, *model["noise"]), np.float32)
    if "generator" in model:
        each = random.standard_normal((*objects.shape, model["object_noise"]), np.float32)
        picture = run(model["generator"], noise=noise, object_noise=each, objects=objects, places=places)
    else:
        turned = random.random(objects.shape, np.float32)
        turns = turned if model["takes_turns"] else np.full_like(turned, -1)
        picture = draw(model, noise, objects=objects, places=places, turns=turns)
    try:
        Path(a.out).write_bytes(png(picture[0]))
    except OSError as error:
        parser.error(f"--out {a.out}: {error.strerror}")


if __name__ == "__main__":
    main()
