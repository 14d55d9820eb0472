"""Takes this project's steps, as `stages.vae`, `ldm` and `gan` do, on made-up pictures."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.labels import CLEVR
from stages import evaluator, vae
from stages.benchmark.clock import Work
from stages.diffusion import DiffusionSampler
from stages.engine.command import Context
from stages.engine.config import derive
from stages.engine.dataset import Dataset, load_dataset
from stages.engine.draws import Draws
from stages.engine.run import Task
from stages.gan import GanTask
from stages.ldm import ldm_task
from stages.vae import VaeTask, latents_of, load_vae

NOISE_PICTURES = 1500
UNTRAINED = ("evaluator", "vae")  # stages whose exports the others need, trained for one step each
LONG = 10**6


def write_pictures(folder: Path, size: int) -> None:
    """Writes a folder in the lab's layout: PNGs of noise on grey, one to three labels and places each."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "iclevr").mkdir(parents=True)
    random, labels, places = np.random.default_rng(0), {}, {}
    for i in range(NOISE_PICTURES):
        pixels = (128 + 20 * random.standard_normal((size, size, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "iclevr" / f"{i:06d}_0.png")
        labels[f"{i:06d}_0.png"] = [CLEVR.names[k] for k in random.choice(24, i % 3 + 1, replace=False)]
        cells = random.choice(9, i % 3 + 1, replace=False)
        places[f"{i:06d}_0.png"] = [[0.2 + 0.3 * (cell % 3), 0.2 + 0.3 * (cell // 3)] for cell in cells.tolist()]
    sets = list(labels.values())[:64]
    files = {"train": labels, "places": places, "objects": CLEVR.index, "test": sets[:32], "new_test": sets[32:]}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


class Subject:
    """Holds the configuration's untrained networks and recipes, with every part switched on from the first step.

    `work`: a folder for its pictures and exports. `again`: uses what an earlier subject left there.
    """

    def __init__(self, context: Context, work: Path, again: bool = False):
        self.folder = work / "pictures"
        if not again:
            write_pictures(self.folder, context.config.data.size)
            shutil.rmtree(work / "subject", ignore_errors=True)
        always = [f"root={work}", "name=subject", f"data.folder={self.folder}", "data.validation_every=20", "uses={}"]
        always += [
            "evaluator.checkpoint=null",
            "vae.codebook.start=0",
            "vae.fsq.start=0",
            "vae.discriminator.start=0",
            "reported={}",
        ]
        always += ["vae.perceptual.weight=0"]  # no contender has it, and its backbone may be missing
        always += [f"{stage}.warmup=0" for stage in ("evaluator", "vae", "ldm", "gan")]

        def of(steps: int) -> Context:
            settings = [*always, *(f"{stage}.steps={steps}" for stage in (*UNTRAINED, "ldm", "gan"))]
            return replace(context, config=derive(context.config, settings), holding=set(), is_variant=True)

        if not again:
            first = of(1)
            evaluator.main(first)
            vae.main(first)
        self.context = of(LONG)
        self.dataset: Dataset = load_dataset(self.context.config, context.device)
        self.vae, _ = load_vae(self.context)

    def changed(self, *overrides: str) -> Context:
        return replace(self.context, config=derive(self.context.config, list(overrides)))

    @cached_property
    def latents(self) -> Tensor:
        """The latents of all its pictures (n, c, s/8, s/8)."""
        found = latents_of(self.vae, "", self.dataset, self.changed("data.latents=memory"))
        assert isinstance(found, Tensor)
        return found

    def stepper(self, task: Task, stage: str, batch: int) -> Work:
        """Returns a function that takes the task's next step at each call."""
        context, step = self.context, iter(range(LONG))

        def work() -> None:
            number = next(step)
            torch.manual_seed(number)
            task.step(number, Draws(context.config.seed, stage, number, batch, context.device))

        return work

    def ldm_step(self, *overrides: str, latents: Tensor | None = None) -> Work:
        """Returns an LDM step. `latents` (n, c, h, w), one for each picture, replace the autoencoder's."""
        context = self.changed(*overrides)
        latents = self.latents if latents is None else latents
        return self.stepper(ldm_task(context, self.dataset, self.vae, latents), "ldm", context.config.ldm.batch)

    def vae_step(self, *overrides: str) -> Work:
        context = self.changed(*overrides)
        return self.stepper(VaeTask(context, self.dataset), "vae", context.config.vae.batch)

    def gan_step(self, *overrides: str) -> Work:
        context = self.changed(*overrides)
        latents = context.config.gan.space == "latents"
        task = GanTask(context, self.dataset, self.vae if latents else None)
        return self.stepper(task, "gan", context.config.gan.batch)

    def sampler(self) -> DiffusionSampler:
        """Returns the LDM's sampler of an untrained network, which is as fast as a trained one."""
        task = ldm_task(self.context, self.dataset, self.vae, self.latents)
        return task.sampler_of(task.ema.average, task.layouts)

    def sampling(self, sampler: DiffusionSampler, count: int, *overrides: str) -> Callable[[], Tensor]:
        """Returns a function that draws `count` pictures at each call, as `make eval` does."""
        how = self.changed(*overrides).config.eval
        condition = self.dataset.conditions[:count].to("cpu")
        return lambda: sampler.sample(condition, [(0, "bench", i) for i in range(count)], how)

    def reading(self, batch: int) -> Work:
        """Returns a function that brings a batch of pictures in [-1, 1] and labels onto the device at each call."""
        step = iter(range(LONG))

        def work() -> tuple[Tensor, Tensor]:
            draws = Draws(0, "bench", next(step), batch, self.context.device)
            index, coming = draws.pictures(self.dataset.once)
            return self.dataset.pictures(index, coming), self.dataset.labels(index)

        return work
