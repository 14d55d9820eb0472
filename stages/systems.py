"""The models by the name of their section: how they are trained and loaded, what they are called."""

from stages.ddpm import load_ddpm
from stages.ddpm import main as train_ddpm
from stages.engine.schema import Config
from stages.gan import load_gan
from stages.gan import main as train_gan
from stages.ldm import load_sampler
from stages.ldm import main as train_ldm

TRAIN = {"ldm": train_ldm, "gan": train_gan, "ddpm": train_ddpm}
LOADERS = {"ldm": load_sampler, "gan": load_gan, "ddpm": load_ddpm}


def title(model: str, config: Config) -> str:
    """What people call it."""
    of_gan = "WGAN-GP" if config.gan.loss == "wgan-gp" else f"GAN, {config.gan.loss}"
    return {"ldm": "Latent diffusion", "gan": of_gan, "ddpm": "Pixel diffusion"}[model]
