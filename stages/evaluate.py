"""`make eval`: draws the test sets with each model over the configured seeds, judges them and writes a report."""

import json
import time

import torch
from torch import Tensor

from models.choices import DIFFUSION
from models.condition import Condition
from models.evaluator import Evaluator, found_labels
from models.layouts import evenly
from stages.commands import COMMANDS
from stages.diffusion import DiffusionSampler
from stages.engine import distributed
from stages.engine.arguments import make_command
from stages.engine.command import JUDGES, Context, run_command
from stages.engine.dataset import Dataset, load_dataset
from stages.engine.errors import UserError
from stages.engine.export import read_about, refuse_other_size
from stages.engine.log import progress, read_metrics, say
from stages.engine.pictures import captioned, grid, page_scale, png
from stages.engine.provenance import facts_of, is_current, provenance_of
from stages.engine.report import curve, write_report
from stages.engine.run import move_aside
from stages.engine.sampling import Sampler
from stages.engine.schema import REPORTED, Eval
from stages.judge import (
    evaluate_held_out,
    evaluate_set,
    load_evaluator,
    load_other_judges,
    load_reader,
    measure_vae,
    refuse_other_pictures,
    scores,
    shown,
)
from stages.models import MODELS, title, trained_models
from stages.reader import EVALUATED, figures_on_real, readable
from stages.vae import load_vae

STRIP = ["red sphere", "yellow cube", "cyan cylinder"]
STRIP_COLUMNS = 10


def recorded(
    sampler: DiffusionSampler, condition: Condition, keys: list[tuple], how: Eval, columns: int
) -> list[tuple[int, Tensor, Tensor]]:
    """Samples. Returns t, pictures of x and of the predicted x_0, at up to `columns` steps from first to last."""
    seen: list[tuple[int, Tensor, Tensor]] = []
    sampler.sample(condition, keys, how, lambda t, x, x0: seen.append((t, x().cpu(), x0().cpu())))
    chosen = evenly(len(seen), columns).tolist()
    return [seen[i] for i in chosen]


def denoising_strip(sampler: DiffusionSampler, dataset: Dataset, context: Context) -> tuple[Tensor, str]:
    """Draws x_t above and the predicted x_0 below, from noise to picture: (3, h, w) in [0, 1], and the labels."""
    vocabulary = dataset.vocabulary
    if all(name in vocabulary.index for name in STRIP):
        condition = Condition.of_lists([[vocabulary.index[name] for name in STRIP]], len(vocabulary))
    else:
        condition = next(iter(dataset.test_sets.values()))[-1:]
    how = context.config.eval.model_copy(update={"batch": 1})
    _, above, below = zip(*recorded(sampler, condition, [(how.seeds[0], "strip", 0)], how, STRIP_COLUMNS), strict=True)
    return grid(torch.cat(above + below), columns=len(above)), vocabulary.describe(condition.labels)[0]


def _captioned(images: Tensor, labels: Tensor, judge: Evaluator, dataset: Dataset, context: Context) -> list[dict]:
    """Returns each picture as a PNG with its labels, and whether the judge found each label."""
    found = found_labels(scores(judge, images, context).cpu(), labels)
    pictures = []
    for image, row, hits in zip(images, labels, found.tolist(), strict=True):
        names = [{"name": dataset.vocabulary.names[i], "hit": hits[i]} for i in row.nonzero().flatten().tolist()]
        pictures.append({"png": png((image + 1) / 2), "labels": names})
    return pictures


def _curves(context: Context) -> list[bytes]:
    wanted = [
        ("evaluator", ["loss"], "evaluator", True),
        ("reader", ["cells", "places"], "reader of places", True),
        ("vae", ["reconstruction", "commitment"], "autoencoder", True),
        ("vae", ["original_accuracy", "reconstruction_accuracy"], "accuracy on reconstructions", False),
    ]
    for name, model in MODELS.items():
        wanted += [(name, *shown) for shown in model.curves]
        wanted.append(
            (name, [f"accuracy_{part}" for part in context.config.data.conditions], f"{model.short}, accuracy", False)
        )
    made = [curve(read_metrics(context.folder(s) / "metrics.jsonl"), names, t, log) for s, names, t, log in wanted]
    return [picture for picture in made if picture]


def play_command(context: Context) -> str | None:
    """Returns the `make play` command for these models, with this command's overrides; None for a variant."""
    if context.is_variant:  # it has more settings than a command line says
        return None
    return make_command("play", context.arguments.config, context.arguments.overrides)


def _evaluator_words(about: dict) -> str:
    if about["kind"] == "lab":
        return "the lab's ResNet-18 checkpoint"
    return "a ResNet-18 trained here on the training scenes, not the lab's checkpoint"


def _draw_sets(
    samplers: dict[str, Sampler],
    judge: Evaluator,
    guide: Evaluator | None,
    others: dict[str, Evaluator],
    dataset: Dataset,
    context: Context,
) -> tuple[dict[str, dict], dict[str, dict]]:
    """Draws and judges each model's test sets, and writes their pictures. Returns figures and samples by model, set."""
    folder = context.folder("eval")
    results: dict[str, dict] = {name: {} for name in samplers}
    samples: dict[str, dict] = {name: {} for name in samplers}
    jobs = [(model, name) for model in samplers for name in dataset.test_sets]
    for model, name in progress(jobs, f"{context.config.name}/eval: {len(jobs)} sets of pictures", len(jobs)):
        condition = dataset.test_sets[name]
        results[model][name], images = evaluate_set(samplers[model], judge, name, condition, context, guide, others)
        if not distributed.is_main():
            continue
        samples[model][name] = _captioned(images, condition.labels, judge, dataset, context)
        (folder / f"{model}-{name}.png").write_bytes(png(grid(images), page_scale(dataset.size)))
        (folder / f"{model}-{name}-captioned.png").write_bytes(captioned(samples[model][name]))
    return results, samples


def _strip_of(samplers: dict[str, Sampler], dataset: Dataset, context: Context) -> tuple[bytes | None, str]:
    """Writes the denoising of the first diffusion model. Returns its PNG and labels, None and "" if there is none."""
    denoisers = (sampler for name in DIFFUSION if isinstance(sampler := samplers.get(name), DiffusionSampler))
    if (denoiser := next(denoisers, None)) is None:
        return None, ""
    picture, labels = denoising_strip(denoiser, dataset, context)
    strip = png(picture, page_scale(dataset.size))
    (context.folder("eval") / "denoising.png").write_bytes(strip)
    return strip, labels


def evaluate(context: Context, dataset: Dataset, exports: dict[str, dict]) -> None:
    """Samples, judges and writes eval/. An old report is moved aside once everything for the new one is loaded."""
    judge, about = load_evaluator(context, len(dataset.vocabulary))
    guided = context.config.eval.classifier_guidance > 0
    guide = load_evaluator(context, len(dataset.vocabulary), "guide")[0] if guided else None
    others = load_other_judges(context, len(dataset.vocabulary))
    samplers: dict[str, Sampler] = {
        name: MODELS[name].load(context)[0] for name in context.config.models if name in exports
    }
    folder = context.folder("eval")
    distributed.barrier()  # all processes have looked for it before the main one moves it
    if (folder / "report.json").exists() and distributed.is_main():
        say(f"{context.config.name}/eval: the old report is now {move_aside(folder)}")
    folder.mkdir(parents=True, exist_ok=True)
    results, samples = _draw_sets(samplers, judge, guide, others, dataset, context)
    counts = sorted({n for sets in results.values() for figures in sets.values() for n in figures["by_objects"]})
    own = _evaluate_placing(samplers, results, judge, dataset, context) if "reader" in exports else None
    if not distributed.is_main():
        return
    strip, strip_labels = _strip_of(samplers, dataset, context)
    provenance = provenance_of(context, dataset, exports)
    provenance["seconds"]["evaluate"] = time.perf_counter() - context.began
    result = {
        "evaluator": {
            "kind": about["kind"],
            "words": _evaluator_words(about),
            "real_accuracy": about["real_accuracy"],
            "real_pictures": len(dataset.held_out_images),
        },
        "other_judges": {role: exports[role]["real_accuracy"] for role in others},
        "results": results,
        **({"reader": own} if own else {}),
        "vae": _measure_vae(judge, others, dataset, context) if "vae" in exports else None,
        "provenance": provenance,
    }
    view = {
        "titles": {model: title(model, context.config) for model in samplers},
        "reported": {model: dict(zip(REPORTED, pair, strict=True)) for model, pair in context.config.reported.items()},
        "counts": counts,
        "samples": samples,
        "strip": strip,
        "strip_labels": strip_labels,
        "curves": _curves(context),
        "facts": facts_of(provenance),
        "play": play_command(context),
    }
    write_report(folder, result, view)


def _evaluate_placing(
    samplers: dict, results: dict, judge: Evaluator, dataset: Dataset, context: Context
) -> dict[str, float | None] | None:
    """Adds the reader's `held_out` to each model's results. Returns its errors on those pictures, if there are any."""
    rows = readable(dataset, EVALUATED)
    if not len(rows):
        return None
    reader, _ = load_reader(context)
    for model in progress(samplers, f"{context.config.name}/eval: {len(rows)} held-out pictures' objects and places"):
        asked = dataset.held_out_conditions[rows]
        results[model]["held_out"] = evaluate_held_out(samplers[model], judge, reader, asked, context)
    return figures_on_real(reader, dataset, rows, context)


def _measure_vae(
    judge: Evaluator, others: dict[str, Evaluator], dataset: Dataset, context: Context
) -> dict[str, float | str]:
    vae, about = load_vae(context)
    quantizer = about["config"].get("quantizer", "codebook")  # an older export has no such key
    return {
        **measure_vae(vae, judge, dataset, context, others=others),
        "codes": vae.quantizer.codebook_size,
        "quantizer": quantizer,
    }


def _say_results(context: Context) -> None:
    distributed.barrier()
    if not distributed.is_main():
        return
    result = json.loads((context.folder("eval") / "report.json").read_text())
    for model, sets in result["results"].items():
        figures = "  ".join(f"{name} {shown(f)}" for name, f in sets.items() if name != "held_out")
        say(f"{title(model, context.config):<17} {figures}")
    say(f"held-out pictures {result['evaluator']['real_accuracy']:.3f}  by the judge, {result['evaluator']['words']}")
    print(context.folder("eval") / "report.html")


def exports_of(context: Context) -> dict[str, dict]:
    """Returns the descriptions of the exports that an evaluation reads, by stage. Raises UserError if one is missing.

    A model that is missing is left out, and so are judges that were not trained.
    """
    exports: dict[str, dict] = {}

    def add(*stages: str) -> None:
        for stage in stages:
            path = context.export(stage)
            exports[stage] = read_about(path, f"run {context.make(stage)}")
            refuse_other_size(path, exports[stage], context.config.data.size)

    # a model that lacks its autoencoder reports that when it is loaded
    beside = ["reader", "vae"] if context.config.needs_vae else ["reader"]
    add("evaluator", *(stage for stage in beside if context.export(stage).exists()))
    add(*(models := trained_models(context)))  # last: without a judge the error is the only line
    if not models:
        told = context.make(" ".join(context.config.models))
        raise UserError(f"nothing to evaluate in {context.folder('')}: run {told} first")
    if context.config.eval.classifier_guidance:
        exports["guide"] = read_about(context.export("guide"), "train the evaluator of that experiment")
        if exports["guide"]["sha256"] == exports["evaluator"]["sha256"]:
            raise UserError(
                f"{context.export('guide')} is the judge itself; uses.guide must name an experiment whose evaluator "
                f"was trained from another seed"
            )
    for role in JUDGES:
        if context.export(role).exists():
            exports[role] = read_about(context.export(role), f"run {context.make('judges')}")
    return exports


def main(context: Context) -> None:
    exports = exports_of(context)
    dataset = load_dataset(context.config, context.device)
    refuse_other_pictures(context, exports, dataset)
    context.hold("eval")
    if not context.arguments.fresh and is_current(context, dataset, exports):
        say(f"{context.config.name}/eval: finished already")
    else:
        evaluate(context, dataset, exports)
    _say_results(context)


if __name__ == "__main__":
    run_command(COMMANDS["evaluate"], main)
