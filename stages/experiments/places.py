"""`make places`: shows 32 training pictures with rings at their objects' places, and counts the known places."""

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from data.images import to_unit
from models.condition import Condition
from models.layouts import evenly
from stages.commands import COMMANDS
from stages.engine.command import Context, run_command
from stages.engine.dataset import load_dataset
from stages.engine.errors import UserError
from stages.engine.pictures import grid, png
from stages.engine.report.page import Page
from stages.engine.run import page_folder

EXAMPLES, COLUMNS = 32, 8
MARKED = 192  # the least pixels a side of a marked picture, so that the numbers can be read
RING = 7  # radius, in pixels of the page
COLOURS = ("#ff2020", "#20ff20", "#ff40ff", "#ffffff", "#ffff40")  # first object, second, ...


def marked(picture: Tensor, places: Tensor) -> Tensor:
    """Draws numbered rings at places (m, 2) in [0, 1] or -1 into a uint8 picture (3, h, h): at least (3, 192, 192)."""
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    scale = -(-MARKED // image.width)
    image = image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    for i, (x, y) in enumerate(places.tolist()):
        if x >= 0:
            across, down, colour = x * image.width, y * image.height, COLOURS[i % len(COLOURS)]
            draw.ellipse((across - RING, down - RING, across + RING, down + RING), outline=colour, width=2)
            draw.text((across + RING + 1, down - RING - 6), str(i + 1), fill=colour)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def known_by_slot(conditions: Condition) -> list[tuple[int, int]]:
    """Counts the first objects of all lists, the second ones, ...: all of them, and those with a known place."""
    return list(zip(conditions.present.sum(0).tolist(), conditions.placed.sum(0).tolist(), strict=True))


def chosen(conditions: Condition) -> Tensor:
    """Returns rows spread evenly over the pictures with the most objects, or over all if those are too few."""
    numbers = conditions.present.sum(1)
    (rows,) = (numbers == numbers.max()).nonzero(as_tuple=True)
    rows = rows if len(rows) >= EXAMPLES else torch.arange(len(conditions))
    return rows[evenly(len(rows), EXAMPLES)]


def main(context: Context) -> None:
    dataset = load_dataset(context.config, torch.device("cpu"))
    if not dataset.places_sha256:
        raise UserError(
            f"{dataset.folder}: no object has a known place, so there is nothing to show; add a places.json "
            "(README, 'Your own data')"
        )
    rows = chosen(dataset.conditions)
    shown = dataset.conditions[rows]
    pictures = torch.stack(list(map(marked, dataset.images[rows], shown.places)))
    slots = known_by_slot(dataset.conditions)
    objects, known = map(sum, zip(*slots, strict=True))
    page = Page(
        f"Places of objects, {context.config.name}",
        f"The places of {known:,} of {objects:,} objects in {len(dataset.images):,} training pictures are known. "
        "The rings are numbered in the order of each picture's list.",
    )
    page.add_figure("places", png(grid(to_unit(pictures), COLUMNS)), "In the order of the second table.")
    page.add_table(
        "Known places, by the object's number in its list",
        ["number", "objects", "known", "share"],
        [[str(i), n, found, found / n if n else None] for i, (n, found) in enumerate(slots, 1)],
    )
    words = dataset.vocabulary.describe_placed(shown.objects, shown.places)
    cells = [[str(i // COLUMNS + 1), str(i % COLUMNS + 1), text] for i, text in enumerate(words)]
    page.add_table("What is shown", ["row", "column", "objects and places"], cells)
    print(page.write(page_folder(context, "places"), {"pictures": rows.tolist(), "shown": words, "known": slots}))


if __name__ == "__main__":
    run_command(COMMANDS["experiments.places"], main)
