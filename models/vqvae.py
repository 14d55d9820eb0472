"""VQ-VAE (arXiv 1711.00937) in the style of VQGAN (arXiv 2012.09841): pictures <-> latents an eighth as wide."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import Downsample, ResidualBlock, Upsample, conv3x3, normalisation
from models.quantizer import QUANTIZERS, AnyQuantizer


class Encoder(nn.Module):
    """(b, 3, s, s) -> (b, latent, s/8, s/8) by three residual down-blocks.

    With stem=2 the first halving is an unshuffle of 2x2 pixels before the first convolution, so that no layer
    works at full resolution; with stem=1 it is a strided convolution after one at full resolution.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        blocks: int,
        middle: int,
        norm: str,
        latent: int,
        stem: int,
        stem_channels: int | None,
    ):
        super().__init__()
        self.stem = stem
        width = stem_channels or channels[0]
        layers: list[nn.Module] = [conv3x3(3 * stem**2, width)]
        for level, outputs in enumerate(channels):
            if level > 0 or stem == 1:
                layers.append(Downsample(width, outputs))
            elif width != outputs:
                layers.append(nn.Conv2d(width, outputs, 1))
            layers += [ResidualBlock(outputs, outputs, norm=norm) for _ in range(blocks)]
            width = outputs
        layers += [ResidualBlock(width, width, norm=norm) for _ in range(middle)]
        self.body = nn.Sequential(*layers, normalisation(norm, width), nn.SiLU(), conv3x3(width, latent))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(F.pixel_unshuffle(images, self.stem))


class Decoder(nn.Module):
    """(b, latent, s/8, s/8) -> (b, 3, s, s): the encoder's mirror."""

    def __init__(
        self,
        channels: tuple[int, ...],
        blocks: int,
        middle: int,
        norm: str,
        latent: int,
        stem: int,
        stem_channels: int | None,
    ):
        super().__init__()
        self.stem = stem
        width = channels[-1]
        layers: list[nn.Module] = [conv3x3(latent, width)]
        layers += [ResidualBlock(width, width, norm=norm) for _ in range(middle)]
        finer = [*channels[-2::-1], stem_channels or channels[0]]
        for level, outputs in zip(reversed(range(len(channels))), finer, strict=True):
            layers += [ResidualBlock(width, width, norm=norm) for _ in range(blocks)]
            if level > 0 or stem == 1:
                layers.append(Upsample(width, outputs))
            elif width != outputs:
                layers.append(nn.Conv2d(width, outputs, 1))
            width = outputs
        self.body = nn.Sequential(*layers, normalisation(norm, width), nn.SiLU())
        self.last = conv3x3(width, 3 * stem**2)

    def forward(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(self.last(self.body(latents)), self.stem)


class LatentClassifier(nn.Module):
    """Returns logits (b, classes) that an object is shown by latents (b, c, h, w).

    It is linear in each cell, then takes the log-sum-exp over cells. It sees no neighbourhood and has no second layer,
    so it reads only what is explicit in the latents. A diffusion model learns latents faster if they show the content
    of a picture (arXiv 2501.01423 aligns them with a vision model's features).
    """

    def __init__(self, latent_channels: int, classes: int, side: int):
        super().__init__()
        self.score = nn.Linear(latent_channels, classes)
        # most objects are absent, and the cells add up: -6 at 8x8
        nn.init.constant_(self.score.bias, -6.0 - 2 * math.log(side / 8))

    def forward(self, latents: Tensor) -> Tensor:
        return self.score(latents.flatten(2).mT).float().logsumexp(1)


class VQVAE(nn.Module):
    """Encoder, quantiser, decoder. Arguments as in the configuration's `vae` section.

    `latents` are the encoder's output *before* quantisation. With `decodes="codes"` `decode` quantises, so a sampled
    latent may be slightly off a code (arXiv 2112.10752, section 3.1: the quantiser is part of the decoder); with
    `"latents"` the decoder gets them unchanged. `latent_mean` and `latent_std` (latent_channels,) are measured over
    the whole set after training. `options` are those of the quantiser.
    """

    quantizer: AnyQuantizer
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        channels: tuple[int, ...] = (64, 96, 128),
        blocks: int = 1,
        middle_blocks: int = 1,
        norm: str = "group",
        latent_channels: int = 6,
        stem: int = 2,
        stem_channels: int | None = None,
        quantizer: str = "codebook",
        options: Mapping[str, object] | None = None,
        decodes: str = "codes",
    ):
        super().__init__()
        shape = (channels, blocks, middle_blocks, norm, latent_channels, stem, stem_channels)
        self.encoder, self.decoder = Encoder(*shape), Decoder(*shape)
        self.quantizer = QUANTIZERS[quantizer](latent_channels, **(options or {"codes": 1024}))
        self.decodes_codes = decodes == "codes"
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))

    def latents(self, images: Tensor) -> Tensor:
        """Returns the encoder's output within the quantiser's bounds: (b, 3, s, s) -> (b, c, s/8, s/8)."""
        return self.quantizer.bounded(self.encoder(images).float())

    def forward(self, images: Tensor, quantize: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """(b, 3, s, s) -> reconstruction, code indices (b, s/8, s/8), weighted commitment loss.

        Without `quantize` the decoder gets the latents unchanged, the codebook does not change, and the loss is 0.
        """
        return self.through(self.latents(images), quantize)

    def through(self, latents: Tensor, quantize: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Does the part of `forward` after `latents` (b, c, s/8, s/8)."""
        if not quantize:
            return self.decoder(latents).float(), self.quantizer.nearest(latents), latents.new_zeros(())
        quantized, indices, commitment = self.quantizer(latents)
        return self.decoder(quantized).float(), indices, commitment

    def encode(self, images: Tensor) -> Tensor:
        """Encodes (b, 3, s, s) to latents (b, c, s/8, s/8), each channel with mean 0 and deviation 1 over the set."""
        return (self.latents(images) - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Decodes normalised latents (b, c, s/8, s/8) to images (b, 3, s, s), by the nearest codes if it decodes codes.

        Gradients pass the codes as if they were the latents (straight through, arXiv 1711.00937, section 3.2).
        """
        latents = latents.float() * self.latent_std[:, None, None] + self.latent_mean[:, None, None]
        if not self.decodes_codes:
            return self.decoder(latents).float()
        codes = self.quantizer.lookup(self.quantizer.nearest(latents.detach()))
        if latents.requires_grad:
            codes = latents + (codes - latents).detach()
        return self.decoder(codes).float()


def code_counts(indices: Tensor, codes: int) -> Tensor:
    """Returns how often each of `codes` codes occurs among indices (...) int64: (codes,) float32, exact to 2^24.

    torch's bincount would wait for the device, to learn the largest index.
    """
    ones = torch.ones(indices.numel(), device=indices.device)
    return torch.zeros(codes, device=indices.device).index_add_(0, indices.flatten(), ones)


def perplexity(counts: Tensor) -> Tensor:
    """Returns exp(entropy) of code counts (codes,): how many equally used codes would have this entropy."""
    shares = counts.double() / counts.sum().clamp(min=1)
    return torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum())
