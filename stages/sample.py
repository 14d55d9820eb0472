"""`make sample LABELS="red cube, cyan sphere"`: a picture from a trained model."""

import argparse
import math
from pathlib import Path

import torch

from data.labels import DataError, Vocabulary
from models.condition import Condition
from stages.engine.checkpoint import write_atomically
from stages.engine.command import Context, command
from stages.engine.errors import UserError
from stages.engine.pictures import grid, png
from stages.systems import LOADERS

# model -> what of a configuration makes it take places
PLACES_KEY = {
    "ldm": "ldm.network.places=true",
    "gan": "gan.generator.entry=map gan.generator.condition=modulation",
    "ddpm": "ddpm.places=true",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", required=True, metavar="TEXT", help='such as "red cube at 0.3 0.6, cyan sphere"')
    parser.add_argument("--count", type=int, default=8, help="how many pictures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="picture i has the key (seed, i) (default: %(default)s)")
    parser.add_argument("--out", default="sample.png", metavar="FILE", help="a PNG file (default: %(default)s)")
    parser.add_argument("--model", choices=LOADERS, help="who draws (default: as `models` has it)")
    parser.add_argument("--steps", type=int, help="of a diffusion's sampler (default: the configuration's eval.steps)")
    parser.add_argument("--guidance", type=float, help="a diffusion's (default: the configuration's eval.guidance)")


def main(context: Context) -> None:
    a = context.arguments
    if a.count < 1:
        raise UserError(f"--count {a.count}: ask for at least one picture")
    if a.steps is not None and a.steps < 1:
        raise UserError(f"--steps {a.steps}: take at least one step")
    if a.guidance is not None and not 0 <= a.guidance < math.inf:
        raise UserError(f"--guidance {a.guidance}: must be a number from 0 on; 1 is none")
    model = a.model or context.config.drawer
    if model == "gan" and (a.steps is not None or a.guidance is not None):
        raise UserError("--steps and --guidance are a diffusion's: leave them out, or say --model ldm")
    if Path(a.out).suffix.lower() != ".png":
        raise UserError(f"--out {a.out}: pictures are written as PNG; choose a name that ends in .png")
    sampler, about = LOADERS[model](context)
    try:
        objects, places = Vocabulary(about["objects"]).parse(a.labels)
    except DataError as error:
        raise UserError(str(error)) from None
    if any(places) and not sampler.takes_places:
        raise UserError(
            f"labels {a.labels!r}: this {model} was trained without places; leave them out, or train one with "
            f"{PLACES_KEY[model]}"
        )
    condition = Condition.of_lists([objects], len(about["objects"]), [places])
    how = context.config.eval
    changes = {"steps": a.steps, "guidance": a.guidance, "batch": 8}  # one size: picture i is the same for any count
    how = how.model_copy(update={key: value for key, value in changes.items() if value is not None})
    keys = [(a.seed, "sample", i) for i in range(a.count)]
    with torch.random.fork_rng(devices=[]):
        images = sampler.sample(condition.repeat(a.count), keys, how)
    write_atomically(Path(a.out), png(grid(images, columns=min(8, a.count)), 2))
    print(a.out)


if __name__ == "__main__":
    command("Draws pictures of the objects asked for.", main, add_arguments, alone=True)
