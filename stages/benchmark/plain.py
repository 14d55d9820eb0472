"""Takes the same steps the plain way: float32, a DataLoader with workers, library defaults, one pass per purpose.

It is what a good student writes first, with the same networks and settings; nothing is made slower on purpose.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from vector_quantize_pytorch import VectorQuantize

from data.labels import CLEVR
from models.adversarial import LOSSES, auxiliary_loss, gradient_penalty
from models.condition import Condition
from models.patch_discriminator import PatchDiscriminator, adaptive_weight
from models.vqvae import VQVAE
from stages.benchmark.clock import Work
from stages.engine.schema import Config
from stages.gan import build_critic, build_generator
from stages.vae import build_vae

WORKERS = 2
Batch = tuple[Tensor, Tensor]


class Pictures(Dataset):
    """Reads a folder in the lab's layout as torchvision's users do: open, convert, to tensor, normalise."""

    def __init__(self, folder: Path):
        self.folder = folder / "iclevr"
        self.labels = list(json.loads((folder / "train.json").read_text()).items())
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        name, labels = self.labels[i]
        target = torch.zeros(len(CLEVR))
        target[[CLEVR.index[label] for label in labels]] = 1.0
        return self.transform(Image.open(self.folder / name).convert("RGB")), target


def batches(folder: Path, batch: int, device: torch.device) -> Iterator[Batch]:
    """Yields pictures (b, 3, s, s) and labels (b, 24) without end, from a DataLoader that keeps its workers."""
    pinned = device.type == "cuda"
    loader = DataLoader(
        Pictures(folder),
        batch,
        shuffle=True,
        num_workers=WORKERS,
        drop_last=True,
        persistent_workers=True,
        pin_memory=pinned,
    )
    while True:
        for images, labels in loader:
            yield images.to(device, non_blocking=pinned), labels.to(device, non_blocking=pinned)


def reading(folder: Path, batch: int, device: torch.device) -> Callable[[], Batch]:
    """Returns a function that brings a batch onto the device at each call."""
    source = batches(folder, batch, device)
    return lambda: next(source)


def plain_vae(config: Config) -> VQVAE:
    """Builds the configuration's autoencoder with the library's quantiser at its defaults."""
    network = build_vae(config.vae)
    codes, width = config.vae.codebook.codes, config.vae.latent_channels
    network.quantizer = _Library(dim=width, codebook_size=codes, accept_image_fmap=True)
    return network


class Autoencoder(nn.Module):
    """Maps images to their reconstruction and the loss of the codes. `last`: the weight of the decoder's last layer."""

    last: Tensor


class _Library(VectorQuantize):
    def bounded(self, latents: Tensor) -> Tensor:
        return latents


def vae_step(config: Config, folder: Path, device: torch.device, network: Autoencoder | None = None) -> Work:
    """Returns a step of autoencoder and discriminator. `network`: by default ours with the library's quantiser."""
    s, d = config.vae, config.vae.discriminator
    network = (network or _Reconstructing(plain_vae(config))).to(device)
    optimizer = torch.optim.Adam(network.parameters(), s.learning_rate, s.betas)
    discriminator, source = None, batches(folder, s.batch, device)
    if d.weight > 0:
        discriminator = PatchDiscriminator(d.channels, d.layers).to(device)
        its_optimizer = torch.optim.Adam(discriminator.parameters(), d.learning_rate, (0.5, 0.9))

    def work() -> None:
        images, _ = next(source)
        made, codes_loss = network(images)
        error = (made - images).square().mean()
        loss = error + codes_loss
        if discriminator is not None:
            adversarial = -discriminator(made).mean()
            weight: Tensor | float = d.weight
            if d.adaptive:
                weight = d.weight * adaptive_weight(error, adversarial, network.last, d.adaptive_limit)
            loss = loss + weight * adversarial
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if discriminator is not None:
            real, fake = discriminator(images), discriminator(made.detach())
            its_optimizer.zero_grad()
            (F.relu(1 - real).mean() + F.relu(1 + fake).mean()).backward()
            its_optimizer.step()

    return work


class _Reconstructing(Autoencoder):
    def __init__(self, vae: VQVAE):
        super().__init__()
        self.vae, self.last = vae, vae.decoder.last.weight

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        made, _, commitment = self.vae(images)
        return made, commitment.sum()


def gan_step(config: Config, folder: Path, device: torch.device, vae: VQVAE, kept: Batch | None = None) -> Work:
    """Returns a step: `critic_steps` updates of the critic, three passes each, and one of the generator.

    With `kept` inputs of the critic and labels no pictures are read or encoded.
    """
    s = config.gan
    width = vae.latent_mean.numel() if s.space == "latents" else 0
    generator, critic = (
        build(s, len(CLEVR), width, config.data.size).to(device) for build in (build_generator, build_critic)
    )
    optimizers = [torch.optim.Adam(n.parameters(), s.learning_rate, s.betas) for n in (generator, critic)]
    loss_of = LOSSES["wgan-gp"]
    source = batches(folder, s.batch, device)  # reads nothing until it is asked

    def real_batch() -> Batch:
        if kept is not None:
            return kept
        images, labels = next(source)
        with torch.no_grad():
            return (vae.encode(images) if width else F.pixel_unshuffle(images, s.stem)), labels

    def asked(labels: Tensor) -> Condition:
        """Wraps labels as a condition: these networks read only the labels."""
        return cast(Condition, SimpleNamespace(labels=labels))

    def classified(logits: Tensor | None, labels: Tensor) -> Tensor | float:
        others = labels if s.critic.contrasts else None
        return 0.0 if logits is None else s.auxiliary * auxiliary_loss(logits, asked(labels), others=others)

    def work() -> None:
        for _ in range(s.critic_steps):
            real, labels = real_batch()
            fake = generator(torch.randn(len(real), s.generator.noise, device=device), asked(labels)).detach()
            (on_real, logits), (on_fake, _) = critic(real, asked(labels)), critic(fake, asked(labels))
            mix = torch.rand(len(real), 1, 1, 1, device=device)
            penalty, _ = gradient_penalty(critic, real, fake, asked(labels), mix)
            loss = loss_of.critic(on_real, on_fake) + s.penalty * penalty
            optimizers[1].zero_grad()
            (loss + classified(logits, labels)).backward()
            optimizers[1].step()
        made = generator(torch.randn(len(labels), s.generator.noise, device=device), asked(labels))
        scored, logits = critic(made, asked(labels))
        optimizers[0].zero_grad()
        (loss_of.generator(scored, None) + classified(logits, labels)).backward()
        optimizers[0].step()

    return work
