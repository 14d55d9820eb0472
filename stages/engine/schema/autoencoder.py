"""The section `vae`: stage 1, the autoencoder with its quantiser and discriminator."""

from typing import Annotated, Literal

from pydantic import Field

from models.choices import Backbone, QuantizerName
from stages.engine.schema.base import Section, Training
from stages.engine.values import File, Layers, Natural, NonNegative, Part, Positive, Share, Widths


class Perceptual(Section):
    weight: NonNegative = 0.0
    network: Backbone = "vgg"
    weights: File = None  # the backbone's file; null: torch's hub cache


class Discriminator(Section):  # it has Adam with betas .5 and .9, and of `vae` only `clip`
    weight: NonNegative = 0.0  # 0: none
    adaptive: bool = False  # scale by the ratio of gradient norms at the last layer, clamped
    adaptive_limit: Annotated[float, Field(gt=0)] = 1.0
    start: Natural = 0  # the step from which it is used
    channels: Positive = 64
    # all of stride 2 except the last: 64x64 has room for four, 32x32 for three
    layers: Annotated[int, Field(ge=1, le=4)] = 3
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4


class Codebook(Section):
    codes: Annotated[int, Field(ge=2)] = 1024
    decay: Part = 0.99
    commitment: NonNegative = 0.25
    dead_below: NonNegative = 1.0  # codes with a smaller average count per batch are replaced
    rotation_trick: bool = False
    init: Literal["kmeans", "uniform"] = "kmeans"  # from the latents of 16 batches, or at random
    start: Natural = 0  # until this step the autoencoder learns without quantisation, so that k-means finds structure


class Fsq(Section):
    start: Natural = 0  # until this step nothing is quantised: latents are small at first and would all round to 0
    levels: Annotated[int, Field(ge=3)] = 7  # of each latent channel; odd, so that 0 is one of them


class Residual(Section):
    codes: Annotated[int, Field(ge=2)] = 1024  # of each codebook
    quantizers: Layers = 2  # codebooks
    decay: Part = 0.99
    commitment: NonNegative = 0.25
    dead_below: NonNegative = 1.0


class Vae(Training):
    channels: Widths = (64, 96, 128)  # at the three resolutions, finest first
    stem: Literal[1, 2] = 2  # 2: unshuffle 2x2 pixels into channels before the first convolution
    stem_channels: Positive | None = None  # null: as channels[0]
    blocks: Layers = 1  # residual blocks at each resolution
    middle_blocks: Annotated[int, Field(ge=0, le=100)] = 1  # at the coarsest resolution
    norm: Literal["group", "none"] = "group"
    latent_channels: Annotated[int, Field(gt=0, le=1024)] = 6
    quantizer: QuantizerName = "codebook"
    codebook: Codebook = Codebook()
    fsq: Fsq = Fsq()
    residual: Residual = Residual()
    decodes: Literal["codes", "latents"] = "codes"  # what the decoder gets from a sampler's latents
    decoder_noise: NonNegative = 0.0  # decoder input noise in training: deviation |N(0, this)| of the latents'
    unquantized: Share = 0.0  # share of rows whose latents the decoder learns from unquantised
    cell_weight: NonNegative = 0.0  # weight of a linear classifier's loss on what each cell of the latents shows
    label_weight: NonNegative = 0.0  # weight of a linear classifier's loss on the latents: they tell objects apart
    windows_until: Natural = 0  # until this step it learns from a quarter of each picture, around an object
    foreground: NonNegative = 0.0  # extra weight of pixels that differ from the median picture
    edges: NonNegative = 0.0  # weight of a second loss: errors of the differences between neighbouring pixels
    perceptual: Perceptual = Perceptual()
    discriminator: Discriminator = Discriminator()

    @property
    def quantized_from(self) -> int:
        """The step from which latents are quantised in training."""
        return {"codebook": self.codebook.start, "fsq": self.fsq.start}.get(self.quantizer, 0)
