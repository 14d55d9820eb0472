"""`make sample LABELS="red cube, cyan sphere"`: draws pictures with a trained model."""

from pathlib import Path

import torch

from data.labels import DataError, Vocabulary
from models.condition import Condition
from stages.commands import COMMANDS
from stages.engine.command import Context, run_command
from stages.engine.errors import UserError
from stages.engine.files import write_atomically
from stages.engine.pictures import grid, page_scale, png
from stages.models import MODELS


def main(context: Context) -> None:
    a = context.arguments
    model = a.model or context.config.drawer
    sampler, about = MODELS[model].load(context)
    try:
        objects, places = Vocabulary(about["objects"]).parse(a.labels)
    except DataError as error:
        raise UserError(str(error)) from None
    if any(places) and not sampler.takes_places:
        raise UserError(
            f"labels {a.labels!r}: this {model} was trained without places; leave them out, or train one with "
            f"{MODELS[model].placing}"
        )
    condition = Condition.of_lists([objects], len(about["objects"]), [places])
    how = context.config.eval
    changes = {"steps": a.steps, "guidance": a.guidance, "batch": 8}  # one size: picture i is the same for any count
    how = how.model_copy(update={key: value for key, value in changes.items() if value is not None})
    keys = [(a.seed, "sample", i) for i in range(a.count)]
    with torch.random.fork_rng(devices=[]):
        images = sampler.sample(condition.repeat(a.count), keys, how)
    write_atomically(Path(a.out), png(grid(images, columns=min(8, a.count)), page_scale(images.shape[-1])))
    print(a.out)


if __name__ == "__main__":
    run_command(COMMANDS["sample"], main)
