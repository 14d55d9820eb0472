"""`make samplers`: compares DDPM at every timestep with DDIM and DPM-Solver++ at fewer, by accuracy and time."""

import matplotlib.pyplot as plt

from stages.commands import COMMANDS
from stages.engine.command import Context, run_command
from stages.engine.dataset import load_dataset
from stages.engine.errors import UserError
from stages.engine.log import progress
from stages.engine.report import drawn, error_bars
from stages.engine.report.page import Page
from stages.engine.run import page_folder
from stages.judge import evaluate_sets, load_evaluator, refuse_other_pictures, shown
from stages.models import load_diffusion, title

DDIM_STEPS = (100, 50, 25, 10, 5)
SOLVER_STEPS = (20, 10, 5)


def choices(timesteps: int) -> dict[str, list[str]]:
    """Returns each sampler's overrides, by its name in the table."""
    found = {f"DDPM, {timesteps} steps": ["eval.sampler=ancestral"]}
    for steps in DDIM_STEPS:
        if steps <= timesteps:
            found[f"DDIM, {steps} steps"] = ["eval.sampler=ddim", "eval.eta=0.0", f"eval.steps={steps}"]
    for steps in SOLVER_STEPS:
        if steps <= timesteps:
            found[f"DPM-Solver++, {steps} steps"] = ["eval.sampler=dpm-solver++", f"eval.steps={steps}"]
    return found


def figure(results: dict[str, dict], per_picture: dict[str, float]) -> bytes:
    """Draws a panel per test set: accuracy with the seeds' deviation over a picture's time; steps beside each point."""
    sets = list(next(iter(results.values())))
    size = (5 * len(sets), 3.6)
    drawing, ((*axes,),) = plt.subplots(1, len(sets), figsize=size, dpi=120, sharey=True, squeeze=False)
    for axis, part in zip(axes, sets, strict=True):
        kinds: dict[str, list[tuple[float, float, float]]] = {}
        for name, found in results.items():
            kind, steps = name.removesuffix(" steps").split(", ")
            x, y = 1000 * per_picture[name], found[part]["accuracy"]
            kinds.setdefault(kind, []).append((x, y, found[part]["std"]))
            place, side = ((4, -10), "left") if kind == "DPM-Solver++" else ((-4, 4), "right")  # it lies close to DDIM
            look = {"textcoords": "offset points", "ha": side, "fontsize": 7, "color": f"C{len(kinds) - 1}"}
            axis.annotate(steps, (x, y), place, **look)
        error_bars(axis, kinds)
        axis.set(xscale="log", xlabel="ms a picture")
        axis.set_title(part, loc="left")
    axes[0].set_ylabel("accuracy")
    drawing.tight_layout()
    return drawn(drawing)


def main(context: Context) -> None:
    model = context.arguments.model or context.config.diffusion
    dataset = load_dataset(context.config, context.device)
    judge, about = load_evaluator(context, len(dataset.vocabulary))
    sampler, of_model = load_diffusion(model, context)
    refuse_other_pictures(context, {"evaluator": about, model: of_model}, dataset)
    variants = choices(len(sampler.diffusion))
    if len(variants) < 2:
        raise UserError(f"{model}.timesteps ({len(sampler.diffusion)}) is too few for DDIM to save any; use 5 or more")
    results: dict[str, dict] = {}
    for name, overrides in progress(list(variants.items()), f"{context.config.name}/samplers"):
        results[name] = evaluate_sets(sampler, judge, dataset, context.derived(context.config.name, *overrides))
    per_picture = {n: 1 / min(f["images_per_second"] for f in sets.values()) for n, sets in results.items()}
    slowest = next(iter(per_picture.values()))
    low, high = context.config.eval.interval
    page = Page(
        f"Samplers of {context.config.name}'s {title(model, context.config)}",
        f"Mean over the seeds {list(context.config.eval.seeds)}, guidance {context.config.eval.guidance:g} "
        f"for t / T from {low:g} to {high:g}, batches of "
        f"{context.config.eval.batch}; judge: {about['kind']} evaluator. The time includes decoding.",
    )
    words = "Accuracy and the seeds' deviation over the time per picture; beside each point its sampling steps."
    page.add_figure("samplers", figure(results, per_picture), words)
    rows = [
        [
            name,
            *map(shown, sets.values()),
            f"{1000 * per_picture[name]:.0f} ms",
            f"{slowest / per_picture[name]:.1f}x",
        ]
        for name, sets in results.items()
    ]
    page.add_table("Accuracy and time", ["", *dataset.test_sets, "a picture", "against DDPM"], rows)
    print(page.write(page_folder(context, "samplers"), {"model": model, "results": results}))


if __name__ == "__main__":
    run_command(COMMANDS["experiments.samplers"], main)
