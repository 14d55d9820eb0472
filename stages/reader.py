"""`make reader`: trains a network, on real pictures only, that reads which objects a picture shows and where."""

import torch
from torch import Tensor

from models.condition import Condition
from models.evaluator import accuracy
from models.layouts import evenly
from models.reader import STRIDE, Reader, placing, reading_loss, target_counts
from stages.commands import COMMANDS
from stages.engine import distributed
from stages.engine.command import Context, run_command
from stages.engine.dataset import PREVIEWED, Dataset, load_dataset
from stages.engine.distributed import with_global_batch_norms
from stages.engine.drawn import Drawn
from stages.engine.draws import Draws
from stages.engine.ema import Ema
from stages.engine.log import say
from stages.engine.optim import Optimizer
from stages.engine.parts import means, parts_of
from stages.engine.run import Part, Run
from stages.evaluator import augmented
from stages.judge import load_reader, read

EVALUATED = 64  # held-out pictures whose objects and places the models are asked for


def readable(dataset: Dataset, most: int | None = None) -> Tensor:
    """Returns indices of the held-out pictures whose places are all known; at most `most`, evenly chosen."""
    rows = dataset.held_out_conditions.wholly_placed.nonzero()[:, 0]
    return rows if most is None else rows[evenly(len(rows), most)]


def figures_on_real(reader: Reader, dataset: Dataset, rows: Tensor, context: Context) -> dict[str, float | None]:
    """Measures the reader's errors (`placing`) and label accuracy on those held-out pictures: its worth as a judge."""
    asked: Condition = dataset.held_out_conditions[rows]
    seen, scores, images = [], [], dataset.held_out_images
    for part in rows.split(256):  # a copy of so many pictures at a time
        found, of_part = read(reader, images[part.to(images.device)], context)
        seen += found
        scores.append(of_part)
    return {
        **placing(seen, asked, dataset.size),
        "accuracy": accuracy(torch.cat(scores), asked.labels.cpu()),
        "pictures": len(rows),
    }


class ReaderTask:
    """Learns what each cell shows and the offset to its object, from the pictures whose places are all known."""

    def __init__(self, context: Context, dataset: Dataset):
        self.context, self.dataset, self.settings = context, dataset, context.config.reader
        self.rows = Drawn(dataset.conditions, "uniform", only=dataset.conditions.wholly_placed.nonzero()[:, 0])
        torch.manual_seed(context.config.seed)
        network = context.on_device(Reader(len(dataset.vocabulary)))
        self.network, self.ema = with_global_batch_norms(network), Ema(network, self.settings.ema)
        self.optimizers = [Optimizer(network, self.settings, context.dtype)]
        self.parts: dict[str, Part] = {"network": network, "ema": self.ema.average, "optimizer": self.optimizers[0]}

    def step(self, step: int, draws: Draws) -> dict[str, Tensor]:
        index, coming = draws.pictures(self.rows)
        pictures, condition = self.dataset.pictures(index, coming), self.dataset.conditions[index]
        images, condition = augmented(pictures, condition, self.settings.low_resolution, draws)
        images = images.contiguous(memory_format=torch.channels_last)
        parts, found = parts_of(len(images), self.settings.accumulate), []
        counts = distributed.average(target_counts(condition, pictures.shape[-1] // STRIDE)) / len(parts)
        self.network.train()
        for rows in parts:
            with self.context.autocast():
                logits, offsets = self.network(images[rows])
            cells, places = reading_loss(logits, offsets, condition[rows], counts)
            self.optimizers[0].add(cells + places, len(parts), last=rows is parts[-1])
            found.append({"cells": cells, "places": places})
        norm = self.optimizers[0].take(step)
        self.ema.update(step)
        return {**means(found), "gradient_norm": norm}

    def measure(self, most: int | None = None) -> dict[str, float | None]:
        return figures_on_real(self.ema.average, self.dataset, readable(self.dataset, most), self.context)

    def preview(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        return {key: value for key, value in self.measure(PREVIEWED).items() if value is not None}, {}

    def export(self) -> tuple[dict[str, Tensor], dict]:
        return self.ema.average.state_dict(), {"metrics": self.measure(), "classes": len(self.dataset.vocabulary)}


def nothing_to_read(dataset: Dataset) -> str | None:
    """Returns why no reader can be trained and measured on these pictures, or None if one can."""
    parts = {"training": dataset.conditions, "held-out": dataset.held_out_conditions}
    without = [name for name, conditions in parts.items() if not conditions.wholly_placed.any()]
    if not without:
        return None
    pictures = " and no ".join(without)
    return f"there is nothing to read: no {pictures} picture of {dataset.folder} has all its places known"


def main(context: Context) -> None:
    dataset = load_dataset(context.config, context.device)
    if "reader" not in context.config.uses and (words := nothing_to_read(dataset)):
        say(f"{context.config.name}/reader: {words}")
        return
    run = Run(context, "reader", {**dataset.parents, "places": dataset.places_sha256})
    if not run.finished():
        run.train(ReaderTask(context, dataset))
    say(f"{run.title}: {words_of(load_reader(context)[1]['metrics'])}")


def words_of(figures: dict[str, float | None]) -> str:
    """Describes a reader's figures for people."""
    error, missed = figures["placement_error_pixels"], figures["not_found"]
    assert missed is not None, "a reader is measured on pictures whose objects all have places"
    shown = "no object is found"
    if error is not None:
        shown = f"placement error {error:.2f} pixels over the {1 - missed:.3f} found"
    return (
        f"on the objects of {figures['pictures']} held-out pictures: {shown}; too many in {figures['too_many']:.3f} of "
        f"the pictures and too few in {figures['too_few']:.3f}; label accuracy {figures['accuracy']:.3f}"
    )


if __name__ == "__main__":
    run_command(COMMANDS["reader"], main)
