"""`make vae`, stage 1: trains a VQ-VAE with a patch discriminator; the judge reads its reconstructions."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from data.foreground import difference_error, median_picture, pixel_weights
from data.images import to_unit
from data.joined import Rows
from models.adversarial import LOSSES
from models.condition import cell_labels, cell_loss, label_loss
from models.patch_discriminator import PatchDiscriminator, adaptive_weight
from models.sizes import CELL
from models.vqvae import VQVAE, LatentClassifier, code_counts
from models.windows import window_of, windows
from stages.commands import COMMANDS
from stages.engine import distributed
from stages.engine.command import Context, run_command
from stages.engine.dataset import PREVIEWED, Dataset, load_dataset
from stages.engine.draws import Draws
from stages.engine.ema import Ema
from stages.engine.errors import UserError
from stages.engine.export import of_this_version
from stages.engine.latent_parts import step_in_parts
from stages.engine.latents import BATCH, from_pack, in_memory, in_pack
from stages.engine.log import say
from stages.engine.lpips import load_perceptual
from stages.engine.optim import Optimizer
from stages.engine.parts import means, parts_of
from stages.engine.pictures import grid
from stages.engine.run import Part, Run
from stages.engine.schema import Vae
from stages.engine.trained import load_trained
from stages.judge import as_input, load_evaluator, measure_vae, reconstruct, shows_nothing

HINGE = LOSSES["hinge"]
JUDGED_FROM = 500  # step from which a preview warns if reconstructions show nothing; before it that is common
NETWORK_KEYS = {
    *("channels", "blocks", "middle_blocks", "norm", "latent_channels", "stem", "stem_channels"),
    *("quantizer", "decodes"),
}


def build_vae(settings: Vae) -> VQVAE:
    """Builds the network of a `vae` section."""
    options = getattr(settings, settings.quantizer).model_dump(exclude={"start"})
    return VQVAE(options=options, **settings.model_dump(include=NETWORK_KEYS))


def load_vae(context: Context) -> tuple[VQVAE, dict]:
    """Loads the experiment's autoencoder, frozen on the device, and the description in its export."""
    vae = load_trained(context, "vae", Vae, lambda settings, about: build_vae(settings))
    return vae.network, vae.about


def load_vae_of(context: Context, stage: str, about: dict) -> VQVAE:
    """Loads the autoencoder that a stage's export was trained on, by its description `about`. Refuses any other."""
    vae, vae_about = load_vae(context)
    with of_this_version(context.export(stage), context.make(f"{stage} FRESH=1")):
        trained_on = about["parents"]["vae"]
    if vae_about["sha256"] != trained_on:
        raise UserError(
            f"{context.export(stage)} was trained on another autoencoder (vae: {trained_on[:12]} -> "
            f"{vae_about['sha256'][:12]}); train it again with {context.make(f'{stage} FRESH=1')}"
        )
    return vae


@torch.no_grad()
def encoded(encode: Callable[[Tensor], Tensor], images: Tensor, context: Context) -> Tensor:
    """Encodes at most 256 pictures (n, 3, s, s) uint8, which may be on another device: (n, c, s/8, s/8)."""
    with context.autocast():
        return encode(as_input(images, context))


def _latent_shape(vae: VQVAE, dataset: Dataset) -> tuple[int, int, int]:
    return vae.latent_mean.numel(), dataset.size // CELL, dataset.size // CELL


def latents_kind(vae: VQVAE, dataset: Dataset, context: Context) -> dict[str, str]:
    """Returns the parent that a run has if its latents are in files: they are rounded to bfloat16 there."""
    return {"latents": "bfloat16"} if in_pack(context, len(dataset.images), _latent_shape(vae, dataset)) else {}


def latents_of(vae: VQVAE, sha256: str, dataset: Dataset, context: Context) -> Rows:
    """Returns the training pictures' normalised latents (n, c, s/8, s/8), float32 on the device or bfloat16 in files.

    `sha256`: the autoencoder's. Each picture is encoded once, by one of the processes.
    """
    encode = partial(encoded, vae.encode, context=context)
    if latents_kind(vae, dataset, context):
        return from_pack(context, encode, dataset.images, {"data": dataset.sha256, "vae": sha256})
    return in_memory(encode, dataset.images, _latent_shape(vae, dataset), context.device)


def decoder_of(vae: VQVAE, context: Context) -> Callable[[Tensor], Tensor]:
    """Returns a function from normalised latents (b, c, s/8, s/8) to pictures (b, 3, s, s) in [-1, 1]."""

    def decode(latents: Tensor) -> Tensor:
        with context.autocast():
            return vae.decode(latents.contiguous(memory_format=torch.channels_last)).clamp(-1, 1)

    return decode


class VaeTask:
    """Trains on reconstruction (+ edges), perceptual, commitment, classification and adversarial losses, weighted.

    The discriminator sees the same reconstructions.
    """

    def __init__(self, context: Context, dataset: Dataset):
        self.context, self.dataset, self.settings = context, dataset, context.config.vae
        s, self.side = self.settings, dataset.size // CELL  # of a picture, in cells
        torch.manual_seed(context.config.seed)
        self.network = context.on_device(build_vae(s))
        self.ema = Ema(self.network, s.ema)
        self.classifier: LatentClassifier | None = None
        self.cells: nn.Conv2d | None = None
        if s.label_weight > 0:
            self.classifier = LatentClassifier(s.latent_channels, len(dataset.vocabulary), self.side).to(context.device)
        if s.cell_weight > 0:
            self.cells = nn.Conv2d(s.latent_channels, len(dataset.vocabulary) + 1, 1).to(context.device)
        heads = {name: head for name, head in (("classifier", self.classifier), ("cells", self.cells)) if head}
        learned = nn.ModuleList([self.network, *heads.values()]) if heads else self.network
        self.optimizers = [Optimizer(learned, s, context.dtype)]
        self.parts: dict[str, Part] = {
            "network": self.network,
            "ema": self.ema.average,
            "optimizer": self.optimizers[0],
            **heads,
        }
        self.discriminator: PatchDiscriminator | None = None
        if s.discriminator.weight > 0:
            d = s.discriminator
            self.discriminator = context.on_device(PatchDiscriminator(d.channels, d.layers))
            own = {"learning_rate": d.learning_rate, "optimizer": "adam", "betas": (0.5, 0.9), "weight_decay": 0.0}
            schedule = {"steps": max(1, s.steps - d.start), "warmup": 0, "decay": "constant"}  # from its own start
            settings = s.model_copy(update=own | schedule)
            self.optimizers.append(Optimizer(self.discriminator, settings))
            self.parts |= {"discriminator": self.discriminator, "discriminator_optimizer": self.optimizers[1]}
        self.perceptual = load_perceptual(s.perceptual, context).to(context.device) if s.perceptual.weight > 0 else None
        self.background = median_picture(dataset.images, context.device) if s.foreground > 0 else None
        self.evaluator, self.evaluator_about = load_evaluator(context, len(dataset.vocabulary))

    def step(self, step: int, draws: Draws) -> dict[str, Tensor]:
        s, d = self.settings, self.settings.discriminator
        index, coming = draws.pictures(self.dataset.once)
        images, condition = self.dataset.pictures(index, coming), self.dataset.conditions[index]
        weights = pixel_weights(images, self.background, s.foreground)
        shown = cell_labels(condition, self.side) if self.cells is not None else None
        if step < s.windows_until:
            place = windows(condition, draws.uniform, self.side)
            images, weights = window_of(images, *place, CELL), window_of(weights, *place, CELL)
            shown = None if shown is None else window_of(shown[:, None], *place, 1)[:, 0]
        images = images.contiguous(memory_format=torch.channels_last)
        self.network.train()
        of_codebook = s.quantizer == "codebook"
        if of_codebook and step == s.codebook.start and s.codebook.init == "kmeans":
            self._start_codebook()
        discriminator = self.discriminator if step >= d.start else None
        if s.accumulate > 1:
            return step_in_parts(self, step, draws, index, images, weights, shown, discriminator)
        with self.context.autocast():
            latents = self.network.latents(images)
            given, indices, commitment = self.given(latents, step >= s.quantized_from, draws)
            made = self.network.decoder(given).float()
        reconstruction, metrics = self.of_pictures(images, made, weights)
        metrics["commitment"] = commitment
        loss = reconstruction + commitment + self.of_latents(latents, index, shown, metrics)
        if discriminator is not None:
            adversarial = self.adversarial(discriminator, made)
            weight = torch.full((), d.weight, device=made.device)
            if d.adaptive:
                last = self.network.decoder.last.weight
                weight = d.weight * adaptive_weight(
                    reconstruction, adversarial, last, d.adaptive_limit, distributed.average
                )
            loss = loss + weight * adversarial
            metrics |= {"adversarial": adversarial, "adversarial_weight": weight}
        metrics["gradient_norm"] = self.optimizers[0].update(loss, step)
        return metrics | self.after(step, indices, images, made.detach(), discriminator)

    def of_pictures(self, images: Tensor, made: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of reconstructions (b, 3, h, w), a mean over rows, and its parts by name."""
        error = made - images
        reconstruction = (weights * error.square()).mean()
        metrics = {"reconstruction": reconstruction}
        if self.settings.edges > 0:
            metrics["edges"] = difference_error(error, weights)
            reconstruction = reconstruction + self.settings.edges * metrics["edges"]
        if self.perceptual is not None:
            distance = self.perceptual(images, made)
            reconstruction = reconstruction + self.settings.perceptual.weight * distance
            metrics["perceptual"] = distance
        return reconstruction, metrics

    def of_latents(
        self, latents: Tensor, index: Tensor, shown: Tensor | None, metrics: dict[str, Tensor]
    ) -> Tensor | float:
        """Returns the weighted losses of the heads on latents (b, c, s/8, s/8), and adds each to `metrics`."""
        loss: Tensor | float = 0.0
        if self.classifier is not None:
            found = label_loss(self.classifier(latents), self.dataset.labels(index))
            loss = loss + self.settings.label_weight * found
            metrics["classification"] = found
        if self.cells is not None and shown is not None:
            metrics["cells"] = cell_loss(self.cells(latents), shown, distributed.average)
            loss = loss + self.settings.cell_weight * metrics["cells"]
        return loss

    def adversarial(self, discriminator: PatchDiscriminator, made: Tensor) -> Tensor:
        """Returns the generator's loss on reconstructions (b, 3, h, w)."""
        with self.context.autocast():
            return HINGE.generator(discriminator(made), None)

    def after(
        self, step: int, indices: Tensor, images: Tensor, made: Tensor, discriminator: PatchDiscriminator | None
    ) -> dict[str, Tensor]:
        """Does what follows the autoencoder's own update: average, discriminator, count of codes."""
        metrics = {}
        self.ema.update(step)
        if discriminator is not None:
            metrics["discriminator"] = self._discriminator_step(discriminator, images, made, step)
        if self.settings.quantizer == "codebook":
            metrics["codes_in_batch"] = (code_counts(indices, self.settings.codebook.codes) > 0).sum()
        return metrics

    def given(self, latents: Tensor, quantize: bool, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what the decoder is given (b, c, s/8, s/8), the codes' indices (b, s/8, s/8) and the commitment loss.

        As configured, the decoder learns from noisy and unquantised latents: a sampler's are slightly off, and a
        decoder that has seen such latents decodes them better (arXiv 2507.15856, 2510.11690).
        """
        s = self.settings
        if not quantize:
            return latents, self.network.quantizer.nearest(latents), latents.new_zeros(())
        given, indices, commitment = self.network.quantizer(latents)
        if s.unquantized > 0:
            given = torch.where(draws.uniform(1, 1, 1) < s.unquantized, latents, given)
        if s.decoder_noise > 0:
            moments = torch.stack([latents.detach(), latents.detach().square()]).mean((1, 3, 4))
            mean, square = distributed.average(moments)  # of the global batch, not of this process's part
            deviation = (square - mean.square()).clamp(min=0).sqrt()[:, None, None]
            amount = s.decoder_noise * draws.normal(1, 1, 1).abs()
            given = given + amount * deviation * draws.normal(*latents.shape[1:])
        return given, indices, commitment

    def _start_codebook(self, batches: int = 16) -> None:
        """Starts the codebook by k-means on latents of pictures spread over the set, alike in all processes."""
        from models.codebooks import Quantizer  # slow to import; building the network did it

        quantizer, count = self.network.quantizer, len(self.dataset.images)
        assert isinstance(quantizer, Quantizer)  # `quantizer: codebook`
        exact = torch.float64 if count > 2**24 else torch.float32  # which holds no larger integers
        chosen = torch.linspace(0, count - 1, min(count, batches * self.settings.batch), dtype=exact).long()
        with torch.no_grad(), self.context.autocast():
            parts = [self.network.latents(self.dataset.pictures(part)) for part in chosen.split(256)]
        quantizer.start(torch.cat(parts), len(chosen) / self.settings.batch)

    def _discriminator_step(self, discriminator: PatchDiscriminator, images: Tensor, made: Tensor, step: int) -> Tensor:
        parts, found = parts_of(len(images), self.settings.accumulate), []
        for rows in parts:
            with self.context.autocast():
                real, fake = discriminator(torch.cat([images[rows], made[rows]])).chunk(2)
            found.append({"discriminator": HINGE.critic(real, fake)})
            self.optimizers[1].add(found[-1]["discriminator"], len(parts), last=rows is parts[-1])
        self.optimizers[1].take(step - self.settings.discriminator.start)
        return means(found)["discriminator"]

    def measure(self, most: int | None = None) -> dict[str, float]:
        return measure_vae(self.ema.average, self.evaluator, self.dataset, self.context, most)

    def preview(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        images = self.dataset.held_out_images[:16]
        made, _ = reconstruct(self.ema.average, images, self.context, self.ema.average.decodes_codes)
        pairs = torch.stack([to_unit(images.to(made.device)), made], dim=1).flatten(0, 1)
        metrics = self.measure(PREVIEWED)
        if step >= JUDGED_FROM and (words := shows_nothing(metrics)):
            say(f"warning: {self.context.config.name}/vae: {words}")
        return metrics, {"reconstructions": grid(pairs, columns=8)}

    @torch.no_grad()
    def _measure_latents(self) -> None:
        """Sets the export's per-channel mean and deviation, over the whole training set, in float64."""
        vae, count = self.ema.average, 0
        total = squares = torch.zeros_like(vae.latent_mean, dtype=torch.float64)
        for images in self.dataset.images.split(BATCH):
            latents = encoded(vae.latents, images, self.context).double().transpose(0, 1).flatten(1)
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
    parents, settings = dataset.parents, context.config.vae
    if settings.cell_weight > 0 or settings.windows_until > 0:
        parents["places"] = dataset.places_sha256
    run = Run(context, "vae", parents)
    if not run.finished():
        run.train(VaeTask(context, dataset))


if __name__ == "__main__":
    run_command(COMMANDS["vae"], main)
