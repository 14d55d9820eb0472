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
opened = functools.cache(lambda file: onnxruntime.InferenceSession(HERE / file, providers=["CPUExecutionProvider"]))


def run(file, **inputs):
    return opened(file).run(None, {i.name: inputs[i.name] for i in opened(file).get_inputs()})[0]


def draw(model, objects, places, noise):
    """Noise (1, c, h, w), objects (1, m) int64, places (1, m, 2) float32, -1 for none -> (1, 3, s, s) in [-1, 1]."""
    x, estimate = noise, np.zeros_like(noise)
    for t, guidance, *factors in model["steps"]:  # DDIM, arXiv 2010.02502, eq. 12
        keep, (p, q, a, b) = np.array([True, False][guidance == 0 : 1 + (guidance != 1)]), np.float32(factors)
        rows = {"x": x, "t": np.int64([t]), "objects": objects, "places": places, "estimate": estimate}
        found = run(model["denoiser"], keep=keep, **{k: v.repeat(len(keep), axis=0) for k, v in rows.items()})
        x, estimate = p * x + q * (found[-1:] + guidance * (found[:1] - found[-1:])), a * x + b * found[:1]
    return run(model["decoder"], x=x)


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
    parser.add_argument("labels", help=f"one or more of {', '.join(config['objects'])}")
    parser.add_argument("--out", default="drawn.png")
    parser.add_argument("--model", choices=config["models"], default=next(iter(config["models"])))
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    model, parts = config["models"][a.model], [part.split(" at ") for part in a.labels.split(",")]
    try:
        random = np.random.default_rng(a.seed)
        names = [" ".join(part[0].split()) for part in parts]
        if unknown := {*names} - {*config["objects"]}:
            raise ValueError(f"unknown object {min(unknown)!r}")
        objects = np.int64([[config["objects"].index(name) for name in names]])
        places = np.float32([[part[1].split() if part[1:] else (-1, -1) for part in parts]]).reshape(1, len(parts), 2)
        if not (places <= 1).all() or ((places >= 0).any() and not model["takes_places"]):
            raise ValueError("a place outside [0, 1], or for a model that takes none")
        if model["layouts"] and (places < 0).any():  # of eight training layouts, the one that spreads objects most
            layouts = random.permutation(np.load(HERE / model["layouts"])[str(len(parts))])[:8]
            found = np.where(places < 0, layouts, places)
            gaps = np.linalg.norm(found[:, :, None] - found[:, None], axis=-1) + 9 * np.eye(len(parts))
            places = found[[gaps.min((1, 2)).argmax()]]
    except (ValueError, KeyError) as error:
        parser.error(f"{error}; see -h. For more objects than training pictures show, write a place for each")
    noise = random.standard_normal((1, *model["noise"]), np.float32)
    if "generator" in model:
        each = random.standard_normal((*objects.shape, model["object_noise"]), np.float32)
        picture = run(model["generator"], noise=noise, object_noise=each, objects=objects, places=places)
    else:
        picture = draw(model, objects, places, noise)
    try:
        Path(a.out).write_bytes(png(picture[0]))
    except OSError as error:
        parser.error(f"--out {a.out}: {error.strerror}")


if __name__ == "__main__":
    main()
