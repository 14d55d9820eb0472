"""The words a configuration may choose from, without torch: Make, `--help` and bad configurations answer at once.

Each names the entries of one registry; tests/models/test_choices.py checks that they agree. A type is one word of
its registry; its plural lists all. It ends in Name where a class has the shorter one.
"""

from typing import Literal, NamedTuple, get_args

ModelName = Literal["ldm", "gan", "ddpm", "onestep"]
MODELS: tuple[str, ...] = get_args(ModelName)  # what draws pictures: stages/models.py


class Words(NamedTuple):
    """Texts about a stage that trains: its network's name, what the network is, and what the stage does."""

    title: str
    what: str
    stage: str


WORDS = {
    "evaluator": Words(
        "Evaluator, the judge",
        "A ResNet-18 that says which objects a picture shows: one logit per object.",
        "Trains the evaluator, or adopts the lab's checkpoint (evaluator.checkpoint=FILE).",
    ),
    "reader": Words(
        "Reader of places",
        "A small network that finds objects and where they are; it measures placing.",
        "Trains the reader of objects and their places, which measures placing.",
    ),
    "vae": Words(
        "Autoencoder",
        "A VQ-VAE between pictures and latents an eighth as wide, on which the others work.",
        "Stage 1: trains the VQ-VAE.",
    ),
    "ldm": Words(
        "Latent diffusion",
        "A cross-attention UNet that denoises latents, told objects and, if known, their places and turns.",
        "Stage 2: trains the latent diffusion model on the autoencoder's latents.",
    ),
    "gan": Words(
        "GAN",
        "The generator of a conditional GAN, by default a WGAN-GP: one call draws a picture.",
        "Trains the conditional WGAN-GP.",
    ),
    "ddpm": Words(
        "Pixel diffusion", "A network that denoises pictures, told the objects.", "Trains a DDPM on pictures."
    ),
    "onestep": Words(
        "One-step LDM",
        "A UNet like the latent diffusion model's, distilled from it, that turns noise into latents in one call.",
        "Distils the latent diffusion model into a one-step generator.",
    ),
}
DIFFUSION = ("ldm", "ddpm")  # the models that denoise
EVERY_TIMESTEP = ("ancestral",)  # the samplers that visit every timestep, whatever eval.steps says

Prediction = Literal["noise", "v", "x0", "mean"]  # what a diffusion network predicts: models/diffusion.py
Schedule = Literal["cosine", "linear", "beta-cosine", "sigmoid"]  # of noise: models/diffusion.py
SamplerName = Literal["ddim", "dpm-solver++", "ancestral"]  # models/samplers.py
Spacing = Literal["trailing", "uniform", "quadratic"]  # of a sampler's timesteps: models/samplers.py
QuantizerName = Literal["codebook", "fsq", "residual"]  # models/quantizer.py
Backbone = Literal["vgg", "alex", "squeeze"]  # of LPIPS: models/perceptual.py
Distance = Literal["l2", "huber"]  # of a distilled generator from its teacher: models/distillation.py
Loss = Literal["wgan-gp", "wgan", "hinge", "non-saturating", "lsgan", "r3gan"]  # adversarial: models/adversarial.py
AuxiliarySchedule = Literal["constant", "rising", "falling"]  # of the label loss's weight: models/adversarial.py
Body = Literal["residual", "dcgan"]  # of generator and critic: models/wgan.py
GeneratorCondition = Literal["concatenation", "modulation", "batch-norm"]  # models/wgan.py
CriticCondition = Literal[  # models/wgan.py
    "projection", "auxiliary", "projection+auxiliary", "concatenation", "projection+contrast"
]

PREDICTIONS: tuple[str, ...] = get_args(Prediction)
SCHEDULES: tuple[str, ...] = get_args(Schedule)
SAMPLERS: tuple[str, ...] = get_args(SamplerName)
SPACINGS: tuple[str, ...] = get_args(Spacing)
QUANTIZERS: tuple[str, ...] = get_args(QuantizerName)
BACKBONES: tuple[str, ...] = get_args(Backbone)
DISTANCES: tuple[str, ...] = get_args(Distance)
LOSSES: tuple[str, ...] = get_args(Loss)
AUXILIARY_SCHEDULES: tuple[str, ...] = get_args(AuxiliarySchedule)
BODIES: tuple[str, ...] = get_args(Body)
GENERATOR_CONDITIONS: tuple[str, ...] = get_args(GeneratorCondition)
CRITIC_CONDITIONS: tuple[str, ...] = get_args(CriticCondition)
PLACED_CRITIC_CONDITIONS = CRITIC_CONDITIONS[:3]  # of a critic that reads at places: models/placed_gan.py
LABELLED = ("auxiliary", "contrast")  # the parts of a critic's condition that have a label loss: models/adversarial.py
