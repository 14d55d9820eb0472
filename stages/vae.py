"""`make vae`, stage 1: a VQ-VAE with a patch discriminator, judged by what the evaluator reads from reconstructions."""

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.images import to_unit
from models.adversarial import LOSSES
from models.evaluator import Evaluator, accuracy
from models.patch_discriminator import PatchDiscriminator, adaptive_weight
from models.perceptual import Perceptual, load_trunk, trunk_url
from models.vqvae import VQVAE, LatentClassifier, perplexity
from stages.engine import distributed
from stages.engine.command import Context, add_fresh, command
from stages.engine.dataset import Dataset, load_dataset
from stages.engine.draws import Draws
from stages.engine.ema import Ema
from stages.engine.errors import UserError, oneline
from stages.engine.optim import Optimizer
from stages.engine.pictures import grid
from stages.engine.run import Run
from stages.engine.schema import Vae
from stages.engine.trained import load_trained
from stages.evaluator import load_evaluator, scores

HINGE = LOSSES["hinge"]
NETWORK_KEYS = {"channels", "blocks", "middle_blocks", "norm", "latent_channels", "stem", "stem_channels"}


def build_vae(settings) -> VQVAE:
    """The network of a `vae` section."""
    codebook = settings.codebook.model_dump(exclude={"start"})
    return VQVAE(codebook=codebook, **settings.model_dump(include=NETWORK_KEYS))


def load_vae(context: Context) -> tuple[VQVAE, dict]:
    """The experiment's autoencoder, frozen on the device, and what its export says of itself."""
    network, _, about = load_trained(context, "vae", Vae, lambda settings, about: build_vae(settings))
    return network, about


def load_vae_of(context: Context, stage: str, about: dict) -> VQVAE:
    """The autoencoder that a stage's export, described by `about`, was trained on. Refuses any other."""
    vae, vae_about = load_vae(context)
    trained_on = about["parents"]["vae"]
    if vae_about["sha256"] != trained_on:
        raise UserError(
            f"{context.export(stage)} was trained on another autoencoder (vae: {trained_on[:12]} -> "
            f"{vae_about['sha256'][:12]}); train it anew with {context.make(f'{stage} FRESH=1')}"
        )
    return vae


@torch.no_grad()
def encoded(encode: Callable[[Tensor], Tensor], images: Tensor, context: Context) -> Iterator[Tensor]:
    """A set (n, 3, 64, 64) uint8, wherever it lies, through an encoder on the device: (at most 256, c, 8, 8) a part."""
    for part in images.split(256):
        pictures = to_unit(part.to(context.device)).to(memory_format=torch.channels_last)
        with context.autocast():
            latents = encode(pictures)
        yield latents


def load_perceptual(settings) -> Perceptual:
    """LPIPS with its ImageNet trunk: a given file, torch's hub cache, or a download into it. Raises UserError."""
    url = trunk_url(settings.network)
    path = Path(settings.weights) if settings.weights else Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    without = "or do without: vae.perceptual.weight=0"
    if not path.is_file() and not settings.weights:
        try:
            torch.hub.load_state_dict_from_url(url, map_location="cpu", progress=True, weights_only=True)
        except (URLError, OSError, RuntimeError):
            raise UserError(
                f"LPIPS needs {path}, which cannot be downloaded here: put {path.name} there, {without}"
            ) from None
    try:
        trunk = load_trunk(torch.load(path, map_location="cpu", weights_only=True))
        return Perceptual(settings.network, trunk)
    except FileNotFoundError:
        raise UserError(f"LPIPS needs {path}, which is missing: put {Path(url).name} there, {without}") from None
    except Exception as error:  # a pickle, a truncated file, another network: all end the same
        raise UserError(
            f"{path} does not hold torchvision's {Path(url).name} ({oneline(error)[:60]}): replace it, {without}"
        ) from None


def median_picture(images: Tensor, device: torch.device) -> Tensor:
    """The median picture (1, 3, 64, 64) in [-1, 1] of a sample of the set: what is scenery and not an object."""
    chosen = torch.linspace(0, len(images) - 1, min(len(images), 501), device=images.device).long()
    # on the CPU: a GPU has no deterministic median
    return to_unit(images[chosen]).cpu().median(dim=0).values[None].to(device)


@torch.no_grad()
def reconstruct(vae: VQVAE, images: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """(n, 3, 64, 64) uint8 -> reconstructions (n, 3, 64, 64) in [-1, 1] and code indices (n, 8, 8)."""
    made, codes = [], []
    for part in images.split(256):
        with context.autocast():
            reconstruction, indices, _ = vae(to_unit(part).to(memory_format=torch.channels_last))
        made.append(reconstruction.clamp(-1, 1))
        codes.append(indices)
    return torch.cat(made), torch.cat(codes)


def measure_vae(vae: VQVAE, judge: Evaluator, dataset: Dataset, context: Context) -> dict[str, float]:
    """On the held-out pictures: PSNR (of the mean squared error, pixels in [0, 1]), code use, the judge's accuracy."""
    images, labels = dataset.held_out_images, dataset.held_out_labels
    made, codes = reconstruct(vae, images, context)
    error = ((made - to_unit(images)) / 2).square().mean()
    counts = torch.bincount(codes.flatten(), minlength=vae.quantizer.codebook_size)
    return {
        "psnr": (-10 * error.log10()).item(),
        "codebook_use": (counts > 0).float().mean().item(),
        "codebook_perplexity": perplexity(counts).item(),
        "original_accuracy": accuracy(scores(judge, images, context), labels),
        "reconstruction_accuracy": accuracy(scores(judge, made, context), labels),
    }


class VaeTask:
    """reconstruction + perceptual + commitment + classification + adversarial, each where its weight is not 0.

    The discriminator sees the same reconstructions.
    """

    def __init__(self, context: Context, dataset: Dataset):
        self.context, self.dataset, self.settings = context, dataset, context.config.vae
        s = self.settings
        torch.manual_seed(context.config.seed)
        self.network = build_vae(s).to(context.device, memory_format=torch.channels_last)
        self.ema = Ema(self.network, s.ema)
        self.classifier = None
        if s.label_weight > 0:
            self.classifier = LatentClassifier(s.latent_channels, len(dataset.vocabulary)).to(context.device)
        learned = nn.ModuleList([self.network, self.classifier]) if self.classifier else self.network
        self.optimizers = [Optimizer(learned, s, context.dtype)]
        self.parts = {"network": self.network, "ema": self.ema.average, "optimizer": self.optimizers[0]}
        if self.classifier:
            self.parts["classifier"] = self.classifier
        self.discriminator = None
        if s.discriminator.weight > 0:
            d = s.discriminator
            self.discriminator = PatchDiscriminator(d.channels, d.layers).to(
                context.device, memory_format=torch.channels_last
            )
            schedule = {"steps": max(1, s.steps - d.start), "warmup": 0, "decay": "constant"}  # its own, from its start
            settings = s.model_copy(
                update={
                    "learning_rate": d.learning_rate,
                    "optimizer": "adam",
                    "betas": (0.5, 0.9),
                    "weight_decay": 0.0,
                    **schedule,
                }
            )
            self.optimizers.append(Optimizer(self.discriminator, settings))
            self.parts |= {"discriminator": self.discriminator, "discriminator_optimizer": self.optimizers[1]}
        self.perceptual = load_perceptual(s.perceptual).to(context.device) if s.perceptual.weight > 0 else None
        self.background = median_picture(dataset.images, context.device) if s.foreground > 0 else None
        self.evaluator, self.evaluator_about = load_evaluator(context, len(dataset.vocabulary))

    def _reconstruction_loss(self, images: Tensor, made: Tensor) -> Tensor:
        """Squared error; pixels that differ from the median picture count 1 + `foreground` times."""
        error = (made - images).square()
        if self.background is None:
            return error.mean()
        differs = ((images - self.background).abs().amax(dim=1, keepdim=True) / 0.2).clamp(max=1)
        # an object's rim, and what is wrongly drawn beside it, count like the object
        weight = 1 + self.settings.foreground * F.max_pool2d(differs, 3, 1, 1)
        return (weight * error).mean()

    def step(self, step: int, draws: Draws) -> dict[str, Tensor]:
        s, d = self.settings, self.settings.discriminator
        index = draws.indices(len(self.dataset.images))
        images = self.dataset.pictures(index).contiguous(memory_format=torch.channels_last)
        self.network.train()
        if step == s.codebook.start and s.codebook.init == "kmeans":
            self._start_codebook()
        with self.context.autocast():
            latents = self.network.encoder(images).float()
            made, indices, commitment = self.network.through(latents, quantize=step >= s.codebook.start)
        reconstruction = self._reconstruction_loss(images, made)
        metrics = {"reconstruction": reconstruction, "commitment": commitment}
        if self.perceptual is not None:
            distance = self.perceptual(images, made)
            reconstruction = reconstruction + s.perceptual.weight * distance
            metrics["perceptual"] = distance
        loss = reconstruction + commitment
        if self.classifier is not None:
            found = F.binary_cross_entropy_with_logits(self.classifier(latents), self.dataset.labels[index])
            loss = loss + s.label_weight * found
            metrics["classification"] = found
        adversarial_on = self.discriminator is not None and step >= d.start
        if adversarial_on:
            with self.context.autocast():
                adversarial = HINGE.generator(self.discriminator(made))
            weight = torch.tensor(d.weight, device=made.device)
            if d.adaptive:
                last = self.network.decoder.last.weight
                weight = d.weight * adaptive_weight(
                    reconstruction, adversarial, last, d.adaptive_limit, distributed.average
                )
            loss = loss + weight * adversarial
            metrics |= {"adversarial": adversarial, "adversarial_weight": weight}
        metrics["gradient_norm"] = self.optimizers[0].update(loss, step)
        self.ema.update(step)
        if adversarial_on:
            metrics["discriminator"] = self._discriminator_step(images, made.detach(), step)
        metrics["codes_in_batch"] = (torch.bincount(indices.flatten(), minlength=s.codebook.codes) > 0).sum()
        return metrics

    def _start_codebook(self, batches: int = 16) -> None:
        """K-means over the latents of pictures spread evenly over the set, the same in every process."""
        count = len(self.dataset.images)
        chosen = torch.linspace(0, count - 1, min(count, batches * self.settings.batch)).long()
        with torch.no_grad(), self.context.autocast():
            parts = [self.network.encoder(self.dataset.pictures(part)) for part in chosen.split(256)]
        self.network.quantizer.start(torch.cat(parts), len(chosen) / self.settings.batch)

    def _discriminator_step(self, images: Tensor, made: Tensor, step: int) -> Tensor:
        with self.context.autocast():
            real, fake = self.discriminator(torch.cat([images, made])).chunk(2)
        loss = HINGE.critic(real, fake)
        self.optimizers[1].update(loss, step - self.settings.discriminator.start)
        return loss

    def measure(self) -> dict[str, float]:
        return measure_vae(self.ema.average, self.evaluator, self.dataset, self.context)

    def preview(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        images = self.dataset.held_out_images[:16]
        made, _ = reconstruct(self.ema.average, images, self.context)
        pairs = torch.stack([to_unit(images), made], dim=1).flatten(0, 1)
        return self.measure(), {"reconstructions": grid(pairs, columns=8)}

    @torch.no_grad()
    def _measure_latents(self) -> None:
        """Sets the export's per-channel mean and deviation, over the whole training set, in float64."""
        vae, count, total, squares = self.ema.average, 0, 0.0, 0.0
        for latents in encoded(vae.encoder, self.dataset.images, self.context):
            latents = latents.double().transpose(0, 1).flatten(1)
            count, total = count + latents.shape[1], total + latents.sum(1)
            squares = squares + latents.square().sum(1)
        mean = total / count
        vae.latent_mean.copy_(mean)
        vae.latent_std.copy_((squares / count - mean.square()).clamp(min=1e-12).sqrt())

    def export(self) -> tuple[dict[str, Tensor], dict]:
        self._measure_latents()
        return self.ema.average.state_dict(), {
            "metrics": self.measure(),
            "evaluator": {key: self.evaluator_about[key] for key in ("kind", "sha256")},
        }


def main(context: Context) -> None:
    dataset = load_dataset(context.config, context.device)
    run = Run(context, "vae", {"data": dataset.sha256})
    if not run.finished():
        run.train(VaeTask(context, dataset))


if __name__ == "__main__":
    command("Stage 1: trains the VQ-VAE.", main, add_fresh)
