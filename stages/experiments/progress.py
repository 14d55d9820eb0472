"""`make progress`: shows the whole denoising of five samples, and of a red sphere, yellow cube and cyan cylinder."""

import torch
from torch import Tensor

from models.layouts import evenly
from stages.commands import COMMANDS
from stages.diffusion import DiffusionSampler
from stages.engine.command import Context, run_command
from stages.engine.dataset import Dataset, load_dataset
from stages.engine.pictures import grid, page_scale, png
from stages.engine.report.page import Page
from stages.engine.run import page_folder
from stages.evaluate import denoising_strip, recorded
from stages.judge import refuse_other_pictures
from stages.models import load_diffusion, title

SAMPLES = 5
COLUMNS = 12


def denoisings(sampler: DiffusionSampler, dataset: Dataset, context: Context) -> tuple[Tensor, list[str], list[int]]:
    """Draws up to five label sets of the first test set, a row each. Returns grid, labels, timesteps."""
    rows = next(iter(dataset.test_sets.values()))
    asked = rows[evenly(len(rows), SAMPLES)]
    how = context.config.eval.model_copy(update={"batch": SAMPLES})
    keys = [(how.seeds[0], "progress", i) for i in range(len(asked))]
    times, columns, _ = zip(*recorded(sampler, asked, keys, how, COLUMNS), strict=True)
    pictures = torch.stack(columns, dim=1).flatten(0, 1)
    return grid(pictures, columns=len(columns)), dataset.vocabulary.describe(asked.labels), list(times)


def main(context: Context) -> None:
    model = context.arguments.model or context.config.diffusion
    dataset = load_dataset(context.config, context.device)
    sampler, about = load_diffusion(model, context)
    refuse_other_pictures(context, {model: about}, dataset)
    pictures, asked, times = denoisings(sampler, dataset, context)
    strip, strip_labels = denoising_strip(sampler, dataset, context)
    scale = page_scale(dataset.size)
    page = Page(
        f"Denoising, {title(model, context.config)} of {context.config.name}",
        "From noise (left) to picture (right): x_t.",
    )
    page.add_figure(
        "progress", png(pictures, scale), "One row per label set, one column per timestep, as listed below."
    )
    rows = [[names, ", ".join(map(str, times))] for names in asked]
    page.add_table("What is shown, from top to bottom", ["label set", "after the steps at t ="], rows)
    page.add_figure("strip", png(strip, scale), f"{strip_labels}: x_t above, the x_0 predicted from it below.")
    print(page.write(page_folder(context, "progress"), {"model": model, "labels": asked, "timesteps": times}))


if __name__ == "__main__":
    run_command(COMMANDS["experiments.progress"], main)
