"""`make ldm`, stage 2: trains a cross-attention UNet on the autoencoder's latents; DDIM samples from it."""

from collections.abc import Callable

import torch

from data.joined import Rows
from models.layouts import LayoutPrior
from models.sizes import CELL
from models.unet import UNet
from models.vqvae import VQVAE
from stages.commands import COMMANDS
from stages.diffusion import DiffusionSampler, DiffusionTask, LogProbability
from stages.engine.ahead import Batches
from stages.engine.command import Context, run_command
from stages.engine.compiled import compile_network
from stages.engine.dataset import Dataset, load_dataset
from stages.engine.run import Run
from stages.engine.schema import Ldm
from stages.engine.trained import load_trained
from stages.judge import accuracy_by, guide_of, load_evaluator
from stages.vae import decoder_of, latents_kind, latents_of, load_vae, load_vae_of


def build_unet(settings: Ldm, inputs: int, classes: int, most: int) -> UNet:
    """Builds the network of an `ldm` section for latents of `inputs` channels and up to `most` labels a picture."""
    return UNet(inputs, classes, most, **settings.network.model_dump())


def latent_sampler(
    context: Context,
    unet: UNet,
    vae: VQVAE,
    settings: Ldm,
    layouts: LayoutPrior,
    guide: LogProbability | None,
    stage: str = "ldm",
) -> DiffusionSampler:
    """Returns a sampler of pictures for a network on latents, of the `stage` that errors name."""
    side = context.config.data.size // CELL
    shape, decode = (unet.inputs, side, side), decoder_of(vae, context)
    return DiffusionSampler(context, stage, unet, settings, shape, decode, layouts, guide)


def load_sampler(context: Context) -> tuple[DiffusionSampler, dict]:
    """Loads the experiment's LDM as a sampler, and the description in its export. Refuses another autoencoder."""
    unet, settings, about, layouts = load_trained(
        context, "ldm", Ldm, lambda s, a: build_unet(s, a["inputs"], a["classes"], a["most"])
    )
    if how := context.config.eval.compile:
        compile_network(unet, context.device, how, constant=True)
    guide = guide_of(context, about["classes"])
    return latent_sampler(context, unet, load_vae_of(context, "ldm", about), settings, layouts, guide), about


def ldm_task(context: Context, dataset: Dataset, vae: VQVAE, latents: Rows) -> DiffusionTask[UNet]:
    """Returns the task of diffusion on the set's latents (n, c, s/8, s/8), which were encoded once."""
    settings = context.config.ldm
    batches = Batches(latents, context.device)
    inputs, classes, most = latents.shape[1], len(dataset.vocabulary), dataset.most_objects
    torch.manual_seed(context.config.seed)
    network = context.on_device(build_unet(settings, inputs, classes, most))
    evaluator, _ = load_evaluator(context, classes)
    guide = guide_of(context, classes)
    return DiffusionTask(
        context,
        "ldm",
        settings,
        dataset,
        network,
        lambda index, coming: batches(index, coming).float(),
        lambda average, layouts: latent_sampler(context, average, vae, settings, layouts, guide),
        accuracy_by(evaluator, context),
        {"inputs": inputs, "classes": classes, "most": most, "objects": dataset.vocabulary.names},
    )


def fresh_task(context: Context, dataset: Dataset) -> DiffusionTask[UNet]:
    """Returns the untrained task on the latents of a data set's pictures."""
    vae, about = load_vae(context)
    return ldm_task(context, dataset, vae, latents_of(vae, about["sha256"], dataset, context))


def main(context: Context, until: Callable[[dict], bool] | None = None) -> None:
    dataset = load_dataset(context.config, context.device)
    dataset.must_know(context.config, "ldm")
    dataset.apart(context.config.ldm.apart, "ldm.apart")  # refused before latents are encoded
    vae, about = load_vae(context)
    parents = {**dataset.parents, "vae": about["sha256"], **latents_kind(vae, dataset, context)}
    if context.config.ldm.wants_layouts:
        parents |= dataset.layouts(context.config.ldm.takes_turns)
    run = Run(context, "ldm", parents)
    if not run.finished():
        run.train(ldm_task(context, dataset, vae, latents_of(vae, about["sha256"], dataset, context)), until)


if __name__ == "__main__":
    run_command(COMMANDS["ldm"], main)
