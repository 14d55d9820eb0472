"""Lists the models that draw pictures in one table: how each is trained, loaded and named. Other lists read it."""

from collections.abc import Callable
from dataclasses import dataclass

from models.choices import WORDS
from stages import ddpm, gan, ldm, onestep
from stages.diffusion import DiffusionSampler
from stages.engine.command import Context
from stages.engine.dataset import Dataset
from stages.engine.log import say
from stages.engine.run import Task
from stages.engine.sampling import Sampler
from stages.engine.schema import Config

Curve = tuple[list[str], str, bool]  # metrics in one plot, its title, whether its axis is logarithmic


@dataclass(frozen=True)
class Model:
    """Describes a model. Its name is its section in the configuration and its folder in an experiment.

    `train(context)` is its stage; `task(context, dataset)` is what that trains, before its first step; `load(context)`
    returns a sampler and its export's metadata; `title(config)` is its name for people; `curves` are its plots in a
    report, before that of its accuracy, and `short` is its name there.
    """

    train: Callable[[Context], None]
    task: Callable[[Context, Dataset], Task]
    load: Callable[[Context], tuple[Sampler, dict]]
    title: Callable[[Config], str]
    curves: tuple[Curve, ...]
    short: str


def _title_of_gan(config: Config) -> str:
    return "WGAN-GP" if config.gan.loss == "wgan-gp" else f"GAN, {config.gan.loss}"


MODELS: dict[str, Model] = {
    "ldm": Model(
        ldm.main,
        ldm.fresh_task,
        ldm.load_sampler,
        lambda config: WORDS["ldm"].title,
        ((["loss"], "latent diffusion", True),),
        "latent diffusion",
    ),
    "gan": Model(
        gan.main,
        gan.fresh_task,
        gan.load_gan,
        _title_of_gan,
        ((["wasserstein", "score_gap"], "GAN, the critic's gap between real and fake", False),),
        "GAN",
    ),
    "ddpm": Model(
        ddpm.main,
        ddpm.DdpmTask,
        ddpm.load_ddpm,
        lambda config: WORDS["ddpm"].title,
        ((["loss"], "pixel diffusion", True),),
        "pixel diffusion",
    ),
    "onestep": Model(
        onestep.main,
        onestep.fresh_task,
        onestep.load_onestep,
        lambda config: WORDS["onestep"].title,
        ((["distance"], "one-step generator, distance from its teacher's latents", True),),
        "one-step generator",
    ),
}


def load_diffusion(model: str, context: Context) -> tuple[DiffusionSampler, dict]:
    """Loads one of DIFFUSION: its sampler and its export's metadata."""
    sampler, about = MODELS[model].load(context)
    assert isinstance(sampler, DiffusionSampler), f"{model} is not a diffusion model"
    return sampler, about


def trained_models(context: Context) -> list[str]:
    """Returns those of the configuration's models that have an export, and says how to train each other one."""
    trained: list[str] = []
    for model in context.config.models:
        if (path := context.export(model)).exists():
            trained.append(model)
        else:
            name = title(model, context.config)
            say(f"warning: {name} is left out: no {path}; {context.make(model)} trains it")
    return trained


def title(model: str, config: Config) -> str:
    """Returns a model's name for people."""
    return MODELS[model].title(config)
