"""`make export OUT=folder`: writes trained networks for other programs, as safetensors and ONNX (docs/exports.md)."""

import json
from dataclasses import replace

import torch
from torch import nn

from models.layouts import LayoutPrior
from models.patches import PatchUNet
from models.placed_gan import PlacedGenerator
from models.sizes import CELL
from models.vqvae import VQVAE
from stages.commands import COMMANDS, export_folder
from stages.diffusion import DiffusionSampler
from stages.engine.command import Context, run_command
from stages.engine.export import read_about
from stages.engine.files import made_whole
from stages.engine.log import say
from stages.engine.sampling import Sampler, takes_turns
from stages.engine.schema import Eval
from stages.gan import GanSampler
from stages.judge import load_evaluator
from stages.models import MODELS
from stages.onestep import ONE_CALL, OneStepSampler
from stages.use import graphs
from stages.use.folder import Folder
from stages.use.graphs import Graph
from stages.use.schedule import diffusers_scheduler, table
from stages.vae import load_vae_of


def on_the_host(context: Context) -> Context:
    """Returns a context that loads networks as they are written: on the CPU, in float32, not compiled, no guide."""
    how = context.config.eval.model_copy(update={"compile": False, "classifier_guidance": 0.0})
    config = context.config.model_copy(update={"eval": how, "device": "cpu"})
    return replace(context, config=config, device=torch.device("cpu"), dtype=torch.float32)


def _layouts_of(sampler: DiffusionSampler | GanSampler, context: Context) -> LayoutPrior | None:
    """Returns the layouts that a sampling chooses places from, or None where it chooses none."""
    how = context.config.eval
    chosen = sampler.takes_places and how.places == "chosen"
    return sampler.layouts.apart(how.apart) if chosen and sampler.layouts.layouts else None


def _add_vae(folder: Folder, context: Context, model: str, about: dict) -> VQVAE:
    """Adds the autoencoder that a model was trained on, which its export's `about` names."""
    vae, side = load_vae_of(context, model, about), context.config.data.size // CELL
    shape = (vae.latent_mean.numel(), side, side)
    of_vae = read_about(context.export("vae"), f"run {context.make('vae')}")
    return folder.add("vae", vae, of_vae, lambda net: {"decoder.onnx": graphs.decoder(net, net.decode, shape)})


def _add_diffusion(
    folder: Folder, context: Context, name: str, sampler: DiffusionSampler, about: dict, on_latents: bool, how: Eval
) -> dict[str, object]:
    """Adds a diffusion model, which draw.py samples as `how` says. Returns what draw.py needs to know of it."""
    diffusion, layouts = sampler.diffusion, _layouts_of(sampler, context)

    def graphs_of(network: nn.Module) -> dict[str, Graph]:
        found = {"denoiser.onnx": graphs.denoiser(network, sampler.shape, about["classes"], len(diffusion))}
        if not on_latents:
            decode = network.pictures if isinstance(network, PatchUNet) else nn.Identity()
            found["decoder.onnx"] = graphs.decoder(network, decode, sampler.shape)
        return found

    scheduler, texts = diffusers_scheduler(diffusion, how), {}
    if scheduler is not None:
        texts = {
            "scheduler/scheduler_config.json": ("the schedule for diffusers' DDIMScheduler", json.dumps(scheduler))
        }
    folder.add(name, sampler.network, about, graphs_of, layouts, texts)
    return {
        "denoiser": f"{name}/denoiser.onnx",
        "decoder": "vae/decoder.onnx" if on_latents else f"{name}/decoder.onnx",
        "noise": [*sampler.shape],
        "layouts": layouts and f"{name}/layouts.npz",
        "takes_places": sampler.takes_places,
        "takes_turns": takes_turns(sampler.network) and context.config.eval.places == "chosen",
        **table(diffusion, how),
    }


def _add_gan(
    folder: Folder, context: Context, name: str, sampler: GanSampler, about: dict, vae: nn.Module | None
) -> dict[str, object]:
    """Adds a GAN's generator; its graph ends in pictures. Returns what draw.py needs to know of it."""
    layouts, generator = _layouts_of(sampler, context), sampler.generator
    to_pictures = graphs.Decoder(vae or nn.Identity(), sampler.to_pictures)
    folder.add(
        name,
        generator,
        about,
        lambda network: {"generator.onnx": graphs.generator(network, about["classes"], to_pictures)},
        layouts,
    )
    return {
        "generator": f"{name}/generator.onnx",
        "noise": [generator.noise],
        "object_noise": generator.object_noise if isinstance(generator, PlacedGenerator) else 0,
        "layouts": layouts and f"{name}/layouts.npz",
        "takes_places": sampler.takes_places,
    }


def add_model(
    folder: Folder, context: Context, name: str, sampler: Sampler, about: dict, vae: VQVAE | None
) -> dict[str, object] | None:
    """Adds one of MODELS by the kind of its sampler. Returns its entry in config.json, or None for another kind."""
    if isinstance(sampler, DiffusionSampler):
        return _add_diffusion(folder, context, name, sampler, about, vae is not None, context.config.eval)
    if isinstance(sampler, OneStepSampler):
        how = context.config.eval.model_copy(update=ONE_CALL)
        return _add_diffusion(folder, context, name, sampler.sampler, about, vae is not None, how)
    if isinstance(sampler, GanSampler):
        return _add_gan(folder, context, name, sampler, about, vae)
    say(f"{name} is left out: there is no graph for its kind of model")
    return None


def main(context: Context) -> None:
    context, out = on_the_host(context), export_folder(context.arguments.out, context.config)
    loaded = {name: MODELS[name].load(context) for name in context.config.models}  # before anything is written
    objects, size = next(iter(loaded.values()))[1]["objects"], context.config.data.size
    judge, of_judge = load_evaluator(context, len(objects))
    with made_whole(out) as path:
        folder, models, vae = Folder(path, context, objects), dict[str, dict](), None
        of_judge["classes"] = len(objects)
        folder.add("evaluator", judge, of_judge, lambda network: {"evaluator.onnx": graphs.judge(network, size)})
        for name, (sampler, about) in loaded.items():
            on_latents = "vae" in about["parents"]
            if on_latents and vae is None:
                vae = _add_vae(folder, context, name, about)
            entry = add_model(folder, context, name, sampler, about, vae if on_latents else None)
            if entry is not None:
                models[name] = entry
        folder.finish(models)
    print(out)


if __name__ == "__main__":
    run_command(COMMANDS["use.export"], main)
