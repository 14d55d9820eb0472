"""`make compare`: compares an experiment's models by time, memory, accuracy, diversity and likeness."""

from torch import Tensor

from models.distances import frechet_distance, mean_pairwise_distance
from models.evaluator import Evaluator
from stages.commands import COMMANDS
from stages.engine.command import Context, run_command
from stages.engine.dataset import Dataset, load_dataset
from stages.engine.errors import UserError
from stages.engine.export import read_about
from stages.engine.log import progress
from stages.engine.pictures import grid, page_scale, png
from stages.engine.report.page import Page
from stages.engine.run import page_folder
from stages.engine.sampling import Sampler, by_names
from stages.experiments.quality import HEAD, Quality, cells, features, load_quality
from stages.experiments.variety import variety, variety_of_real
from stages.judge import evaluate_sets, load_evaluator, refuse_other_pictures, shown
from stages.models import MODELS, title, trained_models

ALIKE = 16  # pictures of one label set, for diversity


def alike_sets(sets: int) -> range:
    """Returns which of `sets` label sets are asked for repeatedly: evenly spread, at least four if possible."""
    return range(0, sets, max(1, sets // 4))


def diversity(sampler: Sampler, dataset: Dataset, context: Context) -> tuple[float, Tensor]:
    """Returns the mean pairwise distance of pictures of one label set, over `alike_sets`, and the first set's."""
    how, pictures = context.config.eval, []
    asked = next(iter(dataset.test_sets.values()))
    for i in alike_sets(len(asked)):
        keys = [(how.seeds[0], "alike", i, k) for k in range(ALIKE)]
        pictures.append(sampler.sample(asked[i : i + 1].repeat(ALIKE), keys, how).cpu())
    found = [mean_pairwise_distance(alike) for alike in pictures]
    return sum(found) / len(found), pictures[0]


def measure(
    model: str, judge: Evaluator, real: Tensor, quality: Quality | None, dataset: Dataset, context: Context
) -> tuple[dict, Tensor]:
    """Returns one model's figures and its pictures of one label set. `real`: the judge's features of real pictures."""
    sampler, about = MODELS[model].load(context)
    refuse_other_pictures(context, {model: about}, dataset)
    sets = evaluate_sets(sampler, judge, dataset, context)
    wanted = by_names(dataset.held_out_conditions[: context.arguments.pictures])
    keys = [(context.config.eval.seeds[0], "held out", i) for i in range(len(wanted))]
    made = sampler.sample(wanted, keys, context.config.eval)
    varied, pictures = diversity(sampler, dataset, context)
    return {
        "accuracy": sets,
        "training_seconds": about["seconds"],
        "training_memory_bytes": about.get("peak_memory_bytes"),
        "pictures_per_second": min(f["images_per_second"] for f in sets.values()),
        "frechet_distance_on_evaluator_features": frechet_distance(features(judge.features, made, context), real),
        "mean_pairwise_distance": varied,
        "variety": variety(sampler, dataset, context),
        "quality": quality.of(sampler) if quality else None,
    }, pictures


def main(context: Context) -> None:
    dataset = load_dataset(context.config, context.device)
    judge, about = load_evaluator(context, len(dataset.vocabulary))
    models = trained_models(context)
    refuse_other_pictures(context, {"evaluator": about}, dataset)
    if not models:
        raise UserError(f"nothing to compare: run {context.make('eval')} first")
    if (count := min(context.arguments.pictures, len(dataset.held_out_images))) < 2:
        fix = "lower data.validation_every or add pictures to validation.json"
        raise UserError(f"{dataset.folder} holds out {count} picture, and a distance needs two; {fix}")
    real = features(judge.features, dataset.held_out_images[:count], context)
    quality = load_quality(context, dataset, judge, count)
    first, asked = next(iter(dataset.test_sets.items()))
    alike = len(alike_sets(len(asked)))
    results, grids = {}, {}
    for model in progress(models, f"{context.config.name}/compare"):
        results[model], grids[model] = measure(model, judge, real, quality, dataset, context)
    results["real"] = {"variety": variety_of_real(dataset), "quality": quality.floor if quality else None}
    page = Page(
        f"{context.config.name}: models side by side",
        f"Accuracy: mean ± deviation over the seeds {list(context.config.eval.seeds)}, by the {about['kind']} "
        f"evaluator. Fréchet distance: on the evaluator's features, {count} pictures of held-out label sets against "
        f"the real ones; it is not the FID, whose network was trained on photographs. Diversity: root mean squared "
        f"pixel difference between {ALIKE} pictures of one label set, the mean of {alike} sets of {first}. One layout "
        f"and over layouts: the same difference between pictures of one label set whose objects are within a pixel of "
        f"each other, or anywhere. For these two, models are asked for exactly the objects and places of training "
        f"pictures, and the last row measures those pictures: mostly of one object, as few other sets occur twice. "
        f"Training: the model's stage only; an LDM and a GAN on latents need the autoencoder too{_vae_words(context)}.",
    )
    head = ["", *dataset.test_sets, "training", "memory", "a picture", "Fréchet distance", "diversity"]
    head += ["one layout", "over layouts"]
    rows = [_row(title(m, context.config), results[m]) for m in models]
    rows.append(["real pictures", *[None] * (len(head) - 3), *results["real"]["variety"].values()])
    page.add_table("Side by side", head, rows)
    if quality:
        names = {m: title(m, context.config) for m in models} | {"real": "real pictures, the floor"}
        page.add_table(
            "Quality by other measures", ["", *HEAD], [[n, *cells(results[m]["quality"])] for m, n in names.items()]
        )
        page.add_words(quality.words)
    for model, pictures in grids.items():
        labels = dataset.vocabulary.describe(next(iter(dataset.test_sets.values()))[:1].labels)[0]
        page.add_figure(
            f"{model}-alike",
            png(grid(pictures), page_scale(dataset.size)),
            f"{title(model, context.config)}: {labels}, {ALIKE} times.",
        )
    print(page.write(page_folder(context, "compare"), results))


def _vae_words(context: Context) -> str:
    path = context.export("vae")
    return f" ({read_about(path, '')['seconds'] / 60:.1f} min)" if path.exists() else ""


def _row(name: str, result: dict) -> list:
    memory = result["training_memory_bytes"]
    return [
        name,
        *map(shown, result["accuracy"].values()),
        f"{result['training_seconds'] / 60:.1f} min",
        f"{memory / 2**30:.1f} GiB" if memory else None,
        f"{1000 / result['pictures_per_second']:.1f} ms",
        f"{result['frechet_distance_on_evaluator_features']:.1f}",
        result["mean_pairwise_distance"],
        *result["variety"].values(),
    ]


if __name__ == "__main__":
    run_command(COMMANDS["experiments.compare"], main)
