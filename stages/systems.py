"""The models by the name of their section: what they are called, how they are trained and loaded."""

from stages.ddpm import load_ddpm
from stages.ddpm import main as train_ddpm
from stages.gan import load_gan
from stages.gan import main as train_gan
from stages.ldm import load_sampler
from stages.ldm import main as train_ldm

TITLES = {"ldm": "Latent diffusion", "gan": "WGAN-GP", "ddpm": "Pixel diffusion"}
TRAIN = {"ldm": train_ldm, "gan": train_gan, "ddpm": train_ddpm}
LOADERS = {"ldm": load_sampler, "gan": load_gan, "ddpm": load_ddpm}
