"""`make pace`: measures how long the LDM takes to pass an accuracy, with this recipe and with a plain one."""

import json
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from stages.commands import COMMANDS
from stages.engine.command import SERVING, Context, run_command
from stages.engine.config import Config
from stages.engine.export import read_about
from stages.engine.log import read_metrics
from stages.engine.report import drawn
from stages.engine.report.page import Page
from stages.engine.run import page_folder
from stages.ldm import main as train_ldm
from stages.vae import main as train_vae

LINES = ("-", "--", ":", "-.")  # of the test sets in the figure
PREVIEWS = 16  # of a whole training: the time of passing is known to the nearest preview
ADAM_BATCH = 64  # of an LDM trained with Adam where the configuration has Muon; Adam's learning rate was chosen for it
ADAM_STEPS = 4  # that an autoencoder needs for each step of Muon (docs/notebook.md, stage 1)
# without what this project adds to the recipe; in float32 too. The loops and the quantiser's arithmetic stay
PLAIN = (
    "vae.norm=group",
    "vae.foreground=0.0",
    "vae.codebook.start=0",
    "vae.codebook.init=uniform",
    "ldm.log_snr=null",
    "ldm.min_snr=null",
    "ldm.timestep_draws=uniform",
    "ldm.picture_draws=uniform",
    "vae.label_weight=0.0",
    "vae.optimizer=adam",
    "ldm.optimizer=adam",
    "ldm.compile=false",
    "eval.interval=[0.0,1.0]",
)


def sets_of(context: Context) -> list[str]:
    """Returns the names of the accuracies that previews measure, one for each test set."""
    return [f"accuracy_{name}" for name in context.config.data.conditions]


def plain(config: Config) -> tuple[str, ...]:
    """Returns PLAIN with the steps that Adam needs to match Muon; an LDM sees the same number of pictures."""
    changes = list(PLAIN)
    if config.vae.optimizer == "muon":
        steps, start = ADAM_STEPS * config.vae.steps, ADAM_STEPS * config.vae.discriminator.start
        changes += [f"vae.steps={steps}", f"vae.discriminator.start={start}", "vae.learning_rate=1.5e-3"]
    if config.ldm.optimizer == "muon":
        steps = max(1, config.ldm.steps * config.ldm.batch // ADAM_BATCH)
        changes += [f"ldm.batch={ADAM_BATCH}", f"ldm.steps={steps}", "ldm.learning_rate=1e-3"]
    return tuple(changes)


def variants(context: Context) -> dict[str, Context]:
    """Returns both recipes as separate experiments that use this one's pictures and evaluator."""
    name = context.config.name
    judges = {"evaluator": name} | {k: v for k, v in context.config.uses.items() if k in SERVING and k != "vae"}
    uses = f"uses={json.dumps(judges)}"

    def derived(name: str, *changes: str) -> Context:
        steps = context.derived(name, uses, *changes).config.ldm.steps
        return context.derived(name, uses, *changes, f"ldm.preview_every={max(1, steps // PREVIEWS)}")

    without = derived(f"{name}-pace-plain", *plain(context.config))
    return {"as configured": derived(f"{name}-pace"), "plain": replace(without, dtype=torch.float32)}


def measure(variant: Context, accuracy: float, to_the_end: bool) -> dict:
    """Trains what is missing: the autoencoder, then the LDM until it has passed.

    Returns the autoencoder's seconds, the LDM's previews as (seconds, accuracies), and the seconds of the first one
    above `accuracy` on all sets, or None. The seconds of previews include the autoencoder's.
    """

    sets = sets_of(variant)

    def passed(line: dict) -> bool:
        return sets[0] in line and min(line[name] for name in sets) > accuracy

    train_vae(replace(variant, began=time.perf_counter()))
    train_ldm(replace(variant, began=time.perf_counter()), None if to_the_end else passed)
    before = read_about(variant.export("vae"), "")["seconds"]
    lines = [line for line in read_metrics(variant.folder("ldm") / "metrics.jsonl") if sets[0] in line]
    points = [(before + line["seconds"], [line[name] for name in sets]) for line in lines]
    first = next((before + line["seconds"] for line in lines if passed(line)), None)
    return {"vae_seconds": before, "previews": points, "seconds": first}


def figure(found: dict[str, dict], accuracy: float, sets: list[str]) -> bytes:
    """Draws accuracy over minutes, with one colour per recipe and one line style per test set."""
    drawing, axis = plt.subplots(figsize=(7, 3.4), dpi=120)
    for i, (name, result) in enumerate(found.items()):
        minutes = [seconds / 60 for seconds, _ in result["previews"]]
        for j, part in enumerate(sets):
            values = [accuracies[j] for _, accuracies in result["previews"]]
            label = f"{name}, {part.removeprefix('accuracy_')}"
            axis.plot(minutes, values, f"C{i}" + LINES[j % len(LINES)], marker="o", markersize=3, label=label)
    axis.axhline(accuracy, color="grey", linewidth=0.8)
    axis.set(xlabel="minutes, including the autoencoder's", ylabel="accuracy", xlim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False)
    drawing.tight_layout()
    return drawn(drawing)


def main(context: Context) -> None:
    accuracy = context.arguments.accuracy
    to_the_end = context.arguments.to_the_end
    found = {name: measure(variant, accuracy, to_the_end) for name, variant in variants(context).items()}
    page = Page(
        f"{context.config.name}: time until accuracy {accuracy:g}",
        f"Time of autoencoder and LDM, previews included, from packed pictures until one seed's accuracy is above "
        f"{accuracy:g} on each of {', '.join(context.config.data.conditions)}. Plain: "
        f"{', '.join(plain(context.config))}, float32. One training each, seed {context.config.seed}.",
    )
    page.add_figure(
        "pace", figure(found, accuracy, sets_of(context)), "Accuracy of the previews over the time of both trainings."
    )
    rows = []
    for name, result in found.items():
        passed, last = result["seconds"], result["previews"][-1]
        reached = f"{passed / 60:.1f} min" if passed else f"not within {last[0] / 60:.1f} min"
        rows.append([name, f"{result['vae_seconds'] / 60:.1f} min", reached, *last[1]])
    first, *others = context.config.data.conditions
    head = ["", "autoencoder", f"above {accuracy:g}", f"{first}, at the last preview", *others]
    page.add_table("Time", head, rows)
    print(page.write(page_folder(context, "pace"), found))


if __name__ == "__main__":
    run_command(COMMANDS["experiments.pace"], main)
