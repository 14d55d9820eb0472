"""The words a configuration may choose from, without torch: Make, `--help` and bad configurations answer at once.

Each names the entries of one registry; tests/models/test_choices.py holds the two equal.
"""

MODELS = {  # what draws pictures, and what its stage does: stages/models.py
    "ldm": "Stage 2: trains the latent diffusion model on the autoencoder's latents.",
    "gan": "Trains the conditional WGAN-GP.",
    "ddpm": "Trains a DDPM on pictures.",
}
DIFFUSION = ("ldm", "ddpm")  # those of them that denoise
PREDICTIONS = ("noise", "v", "x0", "mean")  # what a diffusion network predicts: models/diffusion.py
SCHEDULES = ("cosine", "linear", "beta-cosine", "sigmoid")  # of noise: models/diffusion.py
SAMPLERS = ("ddim", "dpm-solver++", "ancestral")  # models/samplers.py
EVERY_TIMESTEP = ("ancestral",)  # the samplers that take no number of steps
SPACINGS = ("trailing", "uniform", "quadratic")  # of a sampler's timesteps: models/samplers.py
QUANTIZERS = ("codebook", "fsq", "residual")  # models/quantizer.py
BACKBONES = ("vgg", "alex", "squeeze")  # of LPIPS: models/perceptual.py
LOSSES = ("wgan-gp", "wgan", "hinge", "non-saturating", "lsgan", "r3gan")  # adversarial: models/adversarial.py
AUXILIARY_SCHEDULES = ("constant", "rising", "falling")  # of the label loss's weight: models/adversarial.py
BODIES = ("residual", "dcgan")  # of generator and critic: models/wgan.py
GENERATOR_CONDITIONS = ("concatenation", "modulation", "batch-norm")  # models/wgan.py
CRITIC_CONDITIONS = ("projection", "auxiliary", "projection+auxiliary", "concatenation")  # models/wgan.py
PLACED_CRITIC_CONDITIONS = CRITIC_CONDITIONS[:3]  # of a critic that reads at places: models/placed_gan.py
