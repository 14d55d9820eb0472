"""`make held-out`: trains LDM and GAN without some label sets, then asks for those and for four and five objects."""

import random
from dataclasses import replace

import torch
from torch import Tensor

from data.labels import Vocabulary, distinct, withheld
from models.condition import Condition
from stages.commands import COMMANDS, HELD_OUT
from stages.engine.command import Context, run_command
from stages.engine.dataset import Dataset, load_dataset
from stages.engine.errors import UserError
from stages.engine.pictures import grid, page_scale, png
from stages.engine.report.page import Page
from stages.engine.run import page_folder
from stages.judge import evaluate_set, load_evaluator, refuse_other_pictures, shown
from stages.models import MODELS, title

WITHHELD = 0.1  # share of the pairs and triples, where data.withhold is 0
SETS = 64  # label sets of each kind
LARGER = {"four": 4, "five": 5}  # objects at once


def label_sets(every: Tensor, vocabulary: Vocabulary, share: float, seed: int) -> dict[str, Condition]:
    """Draws up to 64 label sets of each kind: seen in training, withheld from it, of four and of five objects.

    `every`: the labels (n, k) of all label sets before a `share` was withheld. Sets of all the vocabulary's objects are
    left out: their accuracy is 1 for any picture. Raises UserError where no sets are withheld, or all.
    """
    rng = random.Random(f"{seed}/held out")
    counts = every.sum(1)
    several = torch.unique(every[(counts > 1) & (counts < len(vocabulary))], dim=0)
    hidden = withheld(Condition.of_labels(several).objects, share)
    if not hidden.any() or hidden.all():
        raise UserError(
            f"of {len(several)} label sets of two or more objects, data.withhold={share:g} withholds none or all; use "
            f"more scenes, or set data.withhold=0.5"
        )

    def some(rows: Tensor) -> Condition:
        return Condition.of_labels(rows[rng.sample(range(len(rows)), min(SETS, len(rows)))])

    def of(number: int) -> Condition:
        return Condition.of_lists([rng.sample(range(len(vocabulary)), number) for _ in range(SETS)], len(vocabulary))

    return {
        "seen": some(several[~hidden]),
        "withheld": some(several[hidden]),
        **{f"{word} objects": of(number) for word, number in LARGER.items() if number < len(vocabulary)},
    }


def seen_sets(dataset: Dataset, rows: Tensor | None = None) -> Tensor:
    """Returns the label sets of the training pictures, or of those at `rows`, each once: multi-hot (u, k)."""
    objects = dataset.conditions.objects if rows is None else dataset.conditions.objects[rows]
    sets, _ = distinct(objects.cpu())
    return replace(dataset.conditions, objects=sets).labels


def trained_without(context: Context, model: str, share: float) -> Context:
    """Trains `model` with a `share` of the label sets withheld. Returns the variant of the experiment."""
    variant = context.derived(f"{context.config.name}-held-out", f"data.withhold={share}")
    MODELS[model].train(variant)
    return variant


def main(context: Context) -> None:
    share = context.config.data.withhold or WITHHELD
    complete: Dataset = load_dataset(context.derived(context.config.name, "data.withhold=0").config, context.device)
    models = [model for model in context.config.models if model in HELD_OUT]
    learned = complete.apart(context.config.ldm.apart, "ldm.apart") if "ldm" in models else None
    sets = label_sets(seen_sets(complete, learned), complete.vocabulary, share, context.config.seed)
    judge, about = load_evaluator(context, len(complete.vocabulary))
    if not context.config.data.withhold:  # otherwise it was trained on fewer pictures
        refuse_other_pictures(context, {"evaluator": about}, complete)
    page = Page(
        f"{context.config.name}: label sets never seen",
        f"A fixed share of the pairs and triples, {share:g}, was withheld when the models were trained (but not the "
        f"{about['kind']} evaluator and the autoencoder, unless data.withhold is set). Accuracy over at most {SETS} "
        f"label sets, mean ± deviation over the seeds {list(context.config.eval.seeds)}. No picture has more than "
        f"{complete.most_objects} objects.",
    )
    results: dict[str, dict] = {}
    figures: list[tuple[str, bytes, str]] = []
    for model in models:
        variant = trained_without(context, model, share)
        sampler, _ = MODELS[model].load(variant)
        results[model] = {}
        for name, asked in sets.items():
            results[model][name], pictures = evaluate_set(sampler, judge, name, asked, variant)
            file = f"{model}-{name.replace(' ', '-')}"
            figures.append(
                (file, png(grid(pictures[:16]), page_scale(complete.size)), f"{title(model, context.config)}: {name}")
            )
    rows = [[title(model, context.config), *map(shown, found.values())] for model, found in results.items()]
    page.add_table("Accuracy", ["", *sets], rows)
    for figure in figures:
        page.add_figure(*figure)
    print(page.write(page_folder(context, "held-out"), results))


if __name__ == "__main__":
    run_command(COMMANDS["experiments.held_out"], main)
