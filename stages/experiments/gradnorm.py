"""`make gradnorm`: compares the critic's gradient norms by layer with weight clipping and with the gradient penalty."""

import matplotlib.pyplot as plt

from stages.commands import COMMANDS
from stages.engine.command import Context, run_command
from stages.engine.log import read_metrics
from stages.engine.report import drawn
from stages.engine.report.page import Page
from stages.engine.run import page_folder
from stages.experiments.systems import CONSTANT
from stages.gan import main as train_gan

VARIANTS = {"wgan-gp": "gradient penalty", "wgan": "weight clipping"}
MOMENTS = 6  # of the training that the figure shows


def layers_over_time(lines: list[dict]) -> tuple[list[str], list[tuple[int, list[float]]]]:
    """Returns the critic's layers, from the input up, and (step, norms) at each log line."""
    lines = [line for line in lines if any(key.startswith("layer ") for key in line)]
    names = [key for key in lines[0] if key.startswith("layer ") and "project" not in key and "skip" not in key]
    order = {"enter": 0, "blocks": 1, "attention": 2, "score": 3}
    names.sort(key=lambda name: (order.get(name.split()[1].split(".")[0], 4), name))
    return [n.removeprefix("layer ").removesuffix(".weight") for n in names], [
        (line["step"], [line[name] for name in names]) for line in lines
    ]


def figure(found: dict[str, tuple[list[str], list[tuple[int, list[float]]]]]) -> bytes:
    """Draws a panel per variant: norm by layer on a log scale, one line per moment of training, dark at the end."""
    drawing, axes = plt.subplots(1, len(found), figsize=(5 * len(found), 3.6), dpi=120, sharey=True)
    for axis, (loss, (names, moments)) in zip(axes, found.items(), strict=True):
        shown = moments[:: max(1, len(moments) // MOMENTS)]
        for i, (step, norms) in enumerate(shown):
            colour = plt.get_cmap("viridis")(1 - (i + 1) / len(shown))
            axis.plot(range(len(names)), norms, marker="o", markersize=3, color=colour, label=f"step {step}")
        axis.set(title=VARIANTS[loss], yscale="log", xlabel="layer, low to high")
        axis.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("norm of the gradient")
    axes[-1].legend(fontsize=6, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))  # beside the lines
    drawing.tight_layout()
    return drawn(drawing)


# a critic without a label loss, which has gradients of its own
SCORE_ALONE = ("gan.critic.condition=projection", CONSTANT, "gan.auxiliary=1.0")


def main(context: Context) -> None:
    name, found = context.config.name, {}
    for loss in VARIANTS:
        steps = context.arguments.steps
        settings = [f"gan.loss={loss}", "gan.layer_norms=true", f"gan.steps={steps}", *SCORE_ALONE]
        every = max(1, steps // 24)
        settings += [f"gan.warmup={min(context.config.gan.warmup, steps // 8)}"]
        pace = (f"gan.log_every={every}", f"gan.preview_every={steps}", f"gan.checkpoint_every={max(1, steps // 4)}")
        variant = context.derived(f"{name}-gradnorm-{loss}", *settings, *pace)
        train_gan(variant)
        found[loss] = layers_over_time(read_metrics(variant.folder("gan") / "metrics.jsonl"))
    page = Page(
        "Gradient norms by critic layer",
        f"The critic of {name}'s GAN, {context.arguments.steps} generator steps, seed {context.config.seed}, with "
        f"weights clipped to ±{context.config.gan.weight_clip} or with the gradient penalty, lambda "
        f"{context.config.gan.penalty:g}. Means over the log interval before each step.",
    )
    page.add_figure("gradnorm", figure(found), "Even norms are good; clipping makes them grow or vanish.")
    result: dict = {"steps": context.arguments.steps, "variants": {}}
    rows = []
    for loss, (names, moments) in found.items():
        last = moments[-1][1]
        spread = max(last) / max(min(last), 1e-30)
        result["variants"][loss] = {"layers": names, "moments": moments, "largest over smallest": spread}
        rows.append([VARIANTS[loss], f"{min(last):.2e}", f"{max(last):.2e}", f"{spread:.1f}"])
    page.add_table("At the end", ["", "smallest layer", "largest layer", "ratio"], rows)
    print(page.write(page_folder(context, "gradnorm"), result))


if __name__ == "__main__":
    run_command(COMMANDS["experiments.gradnorm"], main)
