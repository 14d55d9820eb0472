"""`make placed`: asks for one object at eight places while the others stay; a reader measures how far off it is."""

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from data.labels import DataError, Vocabulary
from models.condition import Condition, unknown_turns
from models.layouts import LayoutPrior
from models.reader import Reader, distances
from stages.commands import COMMANDS, refuse_places
from stages.engine.command import Context, run_command
from stages.engine.dataset import Dataset, load_dataset
from stages.engine.errors import UserError
from stages.engine.log import say
from stages.engine.pictures import grid, png
from stages.engine.report.page import Page
from stages.engine.run import page_folder
from stages.engine.sampling import Sampler
from stages.experiments.places import marked
from stages.judge import load_reader, read, refuse_other_pictures
from stages.models import MODELS, title, trained_models
from stages.reader import words_of

STOPS, COLUMNS = 8, 4  # places at which the object is asked for, and columns of the page's grid
STRIP = 16  # height of the text below a picture, in pixels of the page


def asked_objects(text: str | None, dataset: Dataset) -> list[int]:
    """Returns the objects named, else the first test set's last pair, else its last label set. May raise UserError."""
    if text is None:
        sets = [[i for i in row if i >= 0] for row in next(iter(dataset.test_sets.values())).objects.tolist()]
        return [row for row in sets if len(row) == 2][-1] if any(len(row) == 2 for row in sets) else sets[-1]
    try:
        objects, places = Vocabulary(dataset.vocabulary.names).parse(text)
    except DataError as error:
        raise UserError(str(error)) from None
    refuse_places(text, places)
    return objects


def walk(conditions: Condition, slots: int) -> Tensor:
    """Returns places (8, slots, 2): eight for the last object, far from each other, and fixed ones for the others.

    All are places of training pictures with as many objects, each from the same slot. The other objects are where
    they leave the last one the most places at the distance that training pictures keep. Raises UserError if there is
    no such picture, or there are fewer than eight such places.
    """
    prior = LayoutPrior.of(conditions)
    layouts = prior.layouts.get(slots)
    if layouts is None:
        raise UserError(f"no training picture of {slots} objects has all places known; name fewer or more")
    others, last = layouts[:, :-1], layouts[:, -1].unique(dim=0)
    if slots > 1:
        free = (torch.cdist(others, last.expand(len(others), -1, -1)) >= prior.nearest()).all(dim=1)
        most = free.sum(1).argmax()
        others, last = others[most], last[free[most]]
    else:
        others = others[0]
    if len(last) < STOPS:
        raise UserError(f"fewer than {STOPS} places keep away from {slots - 1} other objects; name fewer objects")
    eight = last[farthest_first(last, STOPS)]
    upper = eight[:, 1].argsort()
    rows = [row[eight[row, 0].argsort()] for row in upper.split(COLUMNS)]  # reading order: by row, then from the left
    eight = eight[torch.cat(rows)]
    return torch.cat([others.expand(STOPS, -1, -1), eight[:, None]], dim=1)


def farthest_first(points: Tensor, count: int) -> list[int]:
    """Returns indices of `count` points of (n, 2): the leftmost, then each time the farthest from those chosen."""
    chosen = [int(points[:, 0].argmin())]
    while len(chosen) < count:
        chosen.append(int(torch.cdist(points, points[chosen]).amin(1).argmax()))
    return chosen


def walked(sampler: Sampler, reader: Reader, asked: Condition, context: Context) -> tuple[Tensor, list[float | None]]:
    """Samples pictures (8, 3, s, s) with one key. Returns them and how many pixels off the last object is."""
    keys = [(context.config.eval.seeds[0], "placed")] * len(asked)
    images = sampler.sample(asked, keys, context.config.eval).cpu()
    only_last = asked.places.clone()
    only_last[:, :-1] = -1
    off = distances(read(reader, images, context)[0], asked.with_places(only_last))
    return images, [None if d is None else images.shape[-1] * d for (d,) in off]


def tile(image: Tensor, place: Tensor, error: float | None) -> Tensor:
    """Stacks a picture (3, s, s) in [-1, 1], a copy with a ring at `place` (2,), and the error, as (3, h, w)."""
    pixels = image.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    plain, ringed = (marked(pixels, places) for places in (place[None][:0], place[None]))
    strip = Image.new("RGB", (plain.shape[2], STRIP), "white")
    text = "not found" if error is None else f"{error:.1f} pixels off"
    ImageDraw.Draw(strip).text((3, 2), text, fill="black")
    below = torch.from_numpy(np.array(strip)).permute(2, 0, 1)
    return torch.cat([plain, ringed, below], dim=1).float() / 127.5 - 1


def main(context: Context) -> None:
    dataset = load_dataset(context.config, context.device)
    objects = asked_objects(context.arguments.labels, dataset)
    places = walk(dataset.conditions, len(objects))
    same = torch.tensor([objects]).repeat(len(places), 1)
    asked = Condition(same, places, unknown_turns(same), len(dataset.vocabulary))
    reader, about = load_reader(context)
    refuse_other_pictures(context, {"reader": about}, dataset)
    names = [dataset.vocabulary.names[i] for i in objects]
    results: dict[str, list[float | None]] = {}
    page = Page(
        f"{context.config.name}: {names[-1]} at eight places",
        f"Asked for: {dataset.vocabulary.describe_placed(asked.objects[:1], asked.places[:1])[0]}; only the place "
        f"of the {names[-1]} changes between pictures, not the noise. The ring marks the asked place. The number is "
        f"how far from it a reader, trained on real pictures only, finds the object. The reader's figures "
        f"{words_of(about['metrics'])}.",
    )
    for model in trained_models(context):
        sampler, about = MODELS[model].load(context)
        refuse_other_pictures(context, {model: about}, dataset)
        if not sampler.takes_places:
            say(f"warning: {title(model, context.config)} is left out: it takes no places")
            continue
        images, results[model] = walked(sampler, reader, asked, context)
        tiles = torch.stack(list(map(tile, images, places[:, -1], results[model])))
        page.add_figure(model, png(grid(tiles, columns=COLUMNS)), title(model, context.config))
    if not results:
        raise UserError(f"no model here takes places; train one first: {context.make('eval')}")
    rows = [[f"{x:.2f} {y:.2f}", *off] for (x, y), *off in zip(places[:, -1].tolist(), *results.values(), strict=True)]
    page.add_table("Pixels off", ["asked at", *(title(model, context.config) for model in results)], rows)
    content = {"objects": names, "places": places.tolist(), "pixels_off": results}
    print(page.write(page_folder(context, "placed"), content))


if __name__ == "__main__":
    run_command(COMMANDS["experiments.placed"], main)
