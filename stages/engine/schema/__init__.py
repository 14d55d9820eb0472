"""The configuration: one class per section of the YAML file, with every key, its default and what it does."""

from stages.engine.schema.autoencoder import Vae
from stages.engine.schema.base import Model, Section, Training, flatten
from stages.engine.schema.diffusion import Ddpm, Denoising, Ldm, Network, Onestep
from stages.engine.schema.experiment import REPORTED, Config, Data, Eval, Render
from stages.engine.schema.gan import Gan
from stages.engine.schema.judges import Evaluator, Reader

__all__ = [
    "REPORTED",
    "Config",
    "Data",
    "Ddpm",
    "Denoising",
    "Eval",
    "Evaluator",
    "Gan",
    "Ldm",
    "Model",
    "Network",
    "Onestep",
    "Reader",
    "Render",
    "Section",
    "Training",
    "Vae",
    "flatten",
]
