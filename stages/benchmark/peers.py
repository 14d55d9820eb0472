"""Runs the same work with diffusers and denoising-diffusion-pytorch, used as in their examples.

They are optional (`.venv/bin/python -m pip install diffusers denoising-diffusion-pytorch`); `available` tells which are
installed.
"""

import math
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.labels import CLEVR
from models.condition import Condition
from models.sizes import CELL
from models.vqvae import VQVAE
from stages.benchmark import plain
from stages.benchmark.clock import Work
from stages.diffusion import DiffusionSampler
from stages.engine.command import Context
from stages.engine.schema import Config, Network


def available(package: str) -> bool:
    return find_spec(package) is not None


def unet(network: Network, channels: int, side: int) -> nn.Module:
    """Builds diffusers' UNet with the same widths, blocks, heads and context."""
    from diffusers import UNet2DConditionModel

    widths = tuple(network.channels * m for m in network.multipliers)
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(widths),
        up_block_types=("CrossAttnUpBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=network.blocks,
        transformer_layers_per_block=network.depth,
        cross_attention_dim=network.context,
        attention_head_dim=tuple(network.heads_at(w) for w in widths),  # heads
        norm_num_groups=math.gcd(32, *widths),
    )


def ldm_step(context: Context, config: Config, folder: Path, vae: VQVAE, cached: Tensor | None) -> Work:
    """Returns a step as in diffusers' text-to-image training example: encode, add noise, predict, AdamW, EMA.

    With `cached` latents (n, c, s/8, s/8) no pictures are read or encoded. The precision is ours: autocast.
    """
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    s, device = config.ldm, context.device
    network = unet(s.network, config.vae.latent_channels, config.data.size // CELL).to(device)
    tokens = nn.Embedding(len(CLEVR), s.network.context).to(device)
    parameters = [*network.parameters(), *tokens.parameters()]
    optimizer = torch.optim.AdamW(parameters, s.learning_rate, s.betas)
    average = EMAModel(network.parameters(), decay=s.ema)
    scheduler = DDPMScheduler(s.timesteps, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    source = plain.batches(folder, s.batch, device)  # reads nothing until it is asked
    most = 3

    def work() -> None:
        if cached is None:
            images, labels = next(source)
            with torch.no_grad(), context.autocast():
                latents = vae.encode(images)
        else:
            latents = cached[torch.randint(len(cached), (s.batch,), device=device)]
            labels = F.one_hot(torch.arange(s.batch, device=device) % len(CLEVR), len(CLEVR)).float()
        noise = torch.randn_like(latents)
        t = torch.randint(s.timesteps, (s.batch,), device=device)
        noisy = scheduler.add_noise(latents, noise, t)
        with context.autocast():
            prediction = network(noisy, t, tokens(labels.topk(most).indices)).sample
        loss = F.mse_loss(prediction.float(), scheduler.get_velocity(latents, noise, t))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(network.parameters())

    return work


class _VQModel(plain.Autoencoder):
    def __init__(self, config: Config):
        from diffusers import VQModel

        super().__init__()
        widths, self.stem = config.vae.channels, CELL >> len(config.vae.channels) - 1
        self.model = VQModel(
            in_channels=3 * self.stem**2,
            out_channels=3 * self.stem**2,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=config.vae.blocks,
            latent_channels=config.vae.latent_channels,
            num_vq_embeddings=config.vae.codebook.codes,
            norm_num_groups=math.gcd(32, *widths),
        )
        self.last = self.model.decoder.conv_out.weight

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        out = self.model(F.pixel_unshuffle(images, self.stem))
        return F.pixel_shuffle(out.sample, self.stem), out.commit_loss.mean()


def vae_step(config: Config, folder: Path, device: torch.device) -> Work:
    """Returns the plain step with diffusers' VQModel of equal widths in place of our network."""
    return plain.vae_step(config, folder, device, _VQModel(config))


def sampling(
    context: Context, sampler: DiffusionSampler, vae: VQVAE, condition: Condition, steps: int, scale: float
) -> Work:
    """Returns diffusers' DDIM loop, as in its pipelines, around our network: only the loop's arithmetic differs."""
    from diffusers import DDIMScheduler

    network, t_count = sampler.network, len(sampler.diffusion)
    scheduler = DDIMScheduler(
        t_count,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )
    doubled = condition.to(context.device).repeat(2)
    keep = torch.tensor([True, False], device=context.device).repeat_interleave(len(condition))

    @torch.no_grad()
    def work() -> Tensor:
        scheduler.set_timesteps(steps, device=context.device)
        x = torch.randn(len(condition), *sampler.shape, device=context.device)
        for t in scheduler.timesteps:
            with context.autocast():
                both = network(torch.cat([x, x]), t.expand(len(doubled)), doubled, keep)
            conditional, unconditional = both.chunk(2)
            guided = unconditional + scale * (conditional - unconditional)
            x = scheduler.step(guided, t, x).prev_sample
        with context.autocast():
            return vae.decode(x)

    return work


def pixel_sampling(device: torch.device, count: int, steps: int, width: int, size: int) -> Work:
    """Returns denoising-diffusion-pytorch's DDIM on pictures of `size` with its default U-Net."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    network = Unet(dim=width, dim_mults=(1, 2, 4, 8), flash_attn=False)
    diffusion = GaussianDiffusion(network, image_size=size, timesteps=1000, sampling_timesteps=steps).to(device)

    def work() -> Tensor:
        with redirect_stderr(StringIO()):  # hides its progress bar
            return diffusion.sample(batch_size=count)

    return work
