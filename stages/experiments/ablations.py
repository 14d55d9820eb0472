"""`make ablations`: trains with one choice changed at a time, on a small fixed budget, over several seeds."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from models.choices import DIFFUSION, EVERY_TIMESTEP
from stages.commands import COMMANDS
from stages.engine.command import Context, run_command
from stages.engine.config import load
from stages.engine.dataset import load_dataset
from stages.engine.errors import UserError
from stages.engine.log import say
from stages.engine.report import drawn, error_bars
from stages.engine.report.page import Page
from stages.engine.run import page_folder
from stages.experiments.systems import GROUPS, SMALL
from stages.judge import evaluate_sets, load_evaluator, refuse_other_pictures
from stages.models import MODELS


def budget(model: str, steps: int) -> list[str]:
    """Returns overrides for a run of `steps` steps: when it saves and warms up, with a preview only at the end."""
    pace = {
        "steps": steps,
        "preview_every": steps,
        "checkpoint_every": max(1, steps // 2),
        "warmup": min(50, steps // 8),
    }
    return [f"{model}.{key}={value}" for key, value in pace.items()]


def section_of(file: str, model: str) -> list[str]:
    """Returns overrides that copy a model's section from another configuration, and how that samples if it denoises."""
    other = load(Path(file))
    section = getattr(other, model).model_dump(mode="json")
    if model not in DIFFUSION:
        return [f"{model}={json.dumps(section)}"]
    return [
        f"{model}={json.dumps(section)}",
        f"eval.sampler={other.eval.sampler}",
        # a sampler of every timestep leaves the number of steps to the experiment
        *([] if other.eval.sampler in EVERY_TIMESTEP else [f"eval.steps={other.eval.steps}"]),
        f"eval.clip={json.dumps(other.eval.clip)}",
        f"eval.guidance={other.eval.guidance}",
        f"eval.interval={json.dumps(other.eval.interval)}",
    ]


def lacks(context: Context, model: str) -> bool:
    """Returns whether the experiment has no section for `model` and must borrow one."""
    return getattr(context.config, model) is None


def asked_of(context: Context, model: str) -> list[str]:
    """Returns the command line's overrides for a model and its evaluation."""
    return [o for o in context.arguments.overrides if o.startswith((f"{model}.", "eval."))]


def borrowed(context: Context, model: str) -> list[str]:
    """Returns overrides that give a configuration without a section for `model` the small one of SMALL.

    What the command line asks of it holds all the same.
    """
    return section_of(SMALL, model) + asked_of(context, model) if lacks(context, model) else []


def accuracies(context: Context, model: str, values: dict[str, list[str]]) -> dict[str, dict[str, list[float]]]:
    """Returns one trained model's accuracies over the evaluation seeds, by sampling value and test set."""
    dataset = load_dataset(context.config, context.device)
    judge, about = load_evaluator(context, len(dataset.vocabulary))
    refuse_other_pictures(context, {"evaluator": about}, dataset)
    sampler, _ = MODELS[model].load(context)
    found = {}
    for value, overrides in values.items():
        sets = evaluate_sets(sampler, judge, dataset, context.derived(context.config.name, *overrides))
        found[value] = {name: figures["per_seed"] for name, figures in sets.items()}
    return found


def variants_of(context: Context, group: str) -> dict[str, list[Context]]:
    """Returns the variants of a group by value, one a seed. A value that is not valid here is said and left out."""
    model, trained, sampled = GROUPS[group]
    found: dict[str, list[Context]] = {}
    for value, overrides in trained.items():
        label = "".join(c if c.isalnum() else "-" for c in f"{group}-{value}".rstrip("-"))
        settings = [*borrowed(context, model), *overrides, f"models=[{model}]"]
        if sampled and getattr(context.config, model).label_dropout == 0:  # else it cannot be guided
            settings.append(f"{model}.label_dropout=0.1")
        settings += budget(model, context.arguments.steps)
        try:
            found[value] = [
                context.derived(f"{context.config.name}-ablation-{label}-{seed}", *settings, f"seed={seed}")
                for seed in range(context.arguments.runs)
            ]
        except UserError as error:
            say(f"warning: {group} {value} is left out: {error}")
    if not found:
        raise UserError(f"no value of the group {group} is valid with these settings, see above")
    return found


def run_group(group: str, variants: dict[str, list[Context]]) -> dict[str, dict[str, list[float]]]:
    """Trains a group. Returns value -> test set -> each training's accuracy, the mean over the evaluation seeds."""
    model, _, sampled = GROUPS[group]
    together: dict[str, dict[str, list[float]]] = {}
    for value, trainings in variants.items():
        for variant in trainings:
            MODELS[model].train(variant)
            for sampled_value, sets in accuracies(variant, model, sampled or {value: []}).items():
                for part, values in sets.items():
                    together.setdefault(sampled_value, {}).setdefault(part, []).append(sum(values) / len(values))
    return together


def spread(values: list[float]) -> tuple[float, float]:
    """Returns the mean and standard deviation over the trainings; the deviation of a single one is 0."""
    found = torch.tensor(values, dtype=torch.float64)
    return found.mean().item(), found.std().item() if len(found) > 1 else 0.0


def figure(group: str, values: dict[str, dict[str, list[float]]]) -> bytes:
    """Draws mean accuracy and deviation over the trainings by value, with one colour per test set, side by side."""
    drawing, axis = plt.subplots(figsize=(8, 3), dpi=120)
    series: dict[str, list[tuple[float, float, float]]] = {}
    for place, sets in enumerate(values.values()):
        for i, (part, found) in enumerate(sets.items()):
            series.setdefault(part, []).append((place + 0.1 * (i - (len(sets) - 1) / 2), *spread(found)))
    error_bars(axis, series, line="none")
    axis.set(xlabel=group, ylabel="accuracy")
    axis.set_xticks(range(len(values)), list(values))
    axis.set_xlim(-0.5, len(values) - 0.5)
    drawing.tight_layout()
    return drawn(drawing)


def main(context: Context) -> None:
    a = context.arguments
    lent = ""
    if any(borrowed(context, GROUPS[group][0]) for group in a.only):
        lent = (
            f" It has no ddpm section: conditions are compared with that of {SMALL}, its sampler, steps and guidance."
        )
    page = Page(
        f"{context.config.name}: one choice at a time",
        f"{a.steps} steps per training, {a.runs} trainings per value (seeds from 0), each scored by its mean over "
        f"the evaluation seeds {list(context.config.eval.seeds)}; mean ± deviation over the trainings. Everything else "
        f"is as in the configuration (but predicted means are sampled with DDPM): compare only within a group.{lent}",
    )
    variants = {group: variants_of(context, group) for group in a.only}  # all, before the first training
    results, folder = {}, page_folder(context, "ablations")
    for group in a.only:
        results[group] = run_group(group, variants[group])
        rows = []
        for value, sets in results[group].items():
            cells = [f"{m:.3f}" + (f" ± {d:.3f}" if a.runs > 1 else "") for m, d in map(spread, sets.values())]
            rows.append([value, *cells])
        page.add_figure(group, figure(group, results[group]), f"{group}: mean and deviation over the trainings.")
        page.add_table(group, [group, *next(iter(results[group].values()))], rows)
        path = page.write(folder, results)  # after each group: a later failure keeps the earlier ones
    print(path)


if __name__ == "__main__":
    run_command(COMMANDS["experiments.ablations"], main)
