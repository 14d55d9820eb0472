"""`make gan`, a separate stage: trains the conditional residual WGAN-GP on pictures or on the autoencoder's latents."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from models.adversarial import (
    AUXILIARY_SCHEDULES,
    LOSSES,
    CriticWeights,
    LabelLoss,
    auxiliary_loss,
    critic_loss,
)
from models.condition import Condition, cell_labels, cell_weights
from models.layouts import LayoutPrior
from models.placed_gan import PlacedCritic, PlacedGenerator
from models.vqvae import VQVAE
from models.wgan import Critic, Generator
from stages.commands import COMMANDS
from stages.engine import distributed
from stages.engine.ahead import Batches
from stages.engine.command import Context, run_command
from stages.engine.dataset import Dataset, load_dataset
from stages.engine.distributed import with_global_batch_norms
from stages.engine.drawn import Drawn
from stages.engine.draws import Coming, Draws
from stages.engine.ema import Ema
from stages.engine.optim import Optimizer
from stages.engine.parts import means, parts_of
from stages.engine.run import Part, Run
from stages.engine.sampling import Draw, in_batches, preview, takes_places, with_chosen_places
from stages.engine.schema import Eval, Gan
from stages.engine.trained import load_trained
from stages.judge import accuracy_by, load_evaluator
from stages.vae import latents_kind, latents_of, load_vae, load_vae_of


def _shape(settings: Gan, latent_channels: int, size: int) -> tuple[int, int]:
    """Returns channels and side of what generator and critic work on."""
    return latent_channels if settings.space == "latents" else 3 * settings.stem**2, settings.side(size)


def build_generator(settings: Gan, classes: int, latent_channels: int, size: int) -> Generator | PlacedGenerator:
    """Builds the generator of a `gan` section, for pictures of `size`.

    For levels of a larger picture that the section does not list, the first width is repeated.
    """
    channels, side = _shape(settings, latent_channels, size)
    smallest, needed = settings.levels(size)["generator"]
    body, bounded = settings.body, settings.space == "pixels"
    of_section = settings.generator.model_dump(exclude={"entry"})
    widths = of_section["channels"]
    of_section["channels"] = (widths[0],) * (needed - len(widths)) + widths
    if settings.generator.entry == "map":
        of_section.pop("condition")
        return PlacedGenerator(classes, channels, side, smallest, bounded=bounded, body=body, **of_section)
    of_section.pop("object_noise")
    return Generator(classes, channels, side, bounded=bounded, body=body, attention=settings.attention, **of_section)


def build_critic(settings: Gan, classes: int, latent_channels: int, size: int) -> Critic | PlacedCritic:
    """Builds the critic of a `gan` section, for pictures of `size`. The last width is repeated, as above."""
    channels, side = _shape(settings, latent_channels, size)
    smallest, needed = settings.levels(size)["critic"]
    of_section = settings.critic.model_dump(exclude={"read"})
    widths = of_section["channels"]
    of_section["channels"] = widths + (widths[-1],) * (needed - len(widths))
    if settings.critic.read == "places":
        of_section.pop("pool")
        return PlacedCritic(classes, channels, side, smallest, body=settings.body, **of_section)
    return Critic(classes, channels, side, body=settings.body, attention=settings.attention, **of_section)


class GanSampler:
    """Samples pictures in one pass of the generator, decoded if it works on latents."""

    def __init__(
        self,
        context: Context,
        generator: Generator | PlacedGenerator,
        settings: Gan,
        vae: VQVAE | None,
        layouts: LayoutPrior,
    ):
        self.context, self.generator, self.settings, self.vae = context, generator, settings, vae
        self.layouts = layouts

    @property
    def takes_places(self) -> bool:
        return takes_places(self.generator)

    @torch.no_grad()
    def sample(self, condition: Condition, keys: list[tuple], how: Eval) -> Tensor:
        """Samples n pictures (n, 3, s, s) in [-1, 1], one a condition and key. Of `how` it uses batch and places."""
        if takes_places(self.generator):
            condition = with_chosen_places(condition, keys, self.layouts, how)

        def make(condition: Condition, draw: Draw, wanted: int) -> Tensor:
            with self.context.autocast():
                return self.to_pictures(self.generator(self.generator.noise_of(draw, condition.slots), condition))

        return in_batches(condition, keys, how.batch, self.context.device, make)

    def to_pictures(self, made: Tensor) -> Tensor:
        """Turns the generator's output into pictures (b, 3, s, s) in [-1, 1]."""
        if self.vae is not None:
            made = self.vae.decode(made.contiguous(memory_format=torch.channels_last))
        else:
            made = F.pixel_shuffle(made, self.settings.stem)
        return made.float().clamp(-1, 1)


def load_gan(context: Context) -> tuple[GanSampler, dict]:
    """Loads the experiment's GAN as a sampler, and the description in its export."""
    size = context.config.data.size
    generator, settings, about, layouts = load_trained(
        context, "gan", Gan, lambda s, a: build_generator(s, a["classes"], a["latent_channels"], size)
    )
    vae = load_vae_of(context, "gan", about) if settings.space == "latents" else None
    return GanSampler(context, generator, settings, vae, layouts), about


def auxiliary_weight(settings: Gan, step: int) -> float:
    """Returns the weight of the generator's label loss at a step, by `auxiliary_schedule` over the run."""
    return settings.auxiliary * AUXILIARY_SCHEDULES[settings.auxiliary_schedule](step / settings.steps)


class GanTask:
    """Trains by `critic_steps` critic updates, each with one combined backward pass, then one generator update."""

    def __init__(self, context: Context, dataset: Dataset, vae: VQVAE | None, vae_sha256: str = ""):
        self.context, self.dataset, self.settings, self.vae = context, dataset, context.config.gan, vae
        s = self.settings
        self.loss, self.rows = LOSSES[s.loss], Drawn(dataset.conditions, s.picture_draws)
        self.latents = None
        if vae is not None:
            self.latents = Batches(latents_of(vae, vae_sha256, dataset, context), context.device)
        self.latent_channels = vae.latent_mean.numel() if vae is not None else 0
        torch.manual_seed(context.config.seed)
        build = (s, len(dataset.vocabulary), self.latent_channels, dataset.size)
        self.generator = with_global_batch_norms(context.on_device(build_generator(*build)))
        self.critic = context.on_device(build_critic(*build))
        self.ema = Ema(self.generator, s.ema)
        critic_settings = s.model_copy(update={"learning_rate": s.critic_learning_rate or s.learning_rate})
        self.optimizers = [
            Optimizer(self.generator, s, context.dtype),
            Optimizer(self.critic, critic_settings, context.dtype),
        ]
        self.optimizers[1].watch_layers = s.layer_norms
        self.parts: dict[str, Part] = {
            "generator": self.generator,
            "critic": self.critic,
            "ema": self.ema.average,
            "generator_optimizer": self.optimizers[0],
            "critic_optimizer": self.optimizers[1],
        }
        self.layouts = LayoutPrior.of(dataset.conditions) if takes_places(self.generator) else LayoutPrior()
        self.evaluator, _ = load_evaluator(context, len(dataset.vocabulary))

    def _real_batch(self, index: Tensor, coming: Coming | None) -> Tensor:
        if self.latents is not None:
            batch = self.latents(index, coming).float()
        else:
            batch = F.pixel_unshuffle(self.dataset.pictures(index, coming), self.settings.stem)
        return batch.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def _fakes(self, rows: list[Tensor], draws: Draws) -> tuple[Tensor, ...]:
        """Generates what all critic steps are shown, in one pass: the generator does not change between them.

        With batch norm it takes one pass a step, since the norm is over one batch, as in the generator's own step.
        """
        noise = [self._noise(draws) for _ in rows]
        if self.settings.generator.condition == "batch-norm":
            return tuple(self._generated(z, self.dataset.conditions[i]) for z, i in zip(noise, rows, strict=True))
        return self._generated(torch.cat(noise), self.dataset.conditions[torch.cat(rows)]).chunk(len(rows))

    def _generated(self, noise: Tensor, condition: Condition) -> Tensor:
        """Runs the generator, part by part with `accumulate`: no graph is kept, but a layer's maps take memory too."""
        with self.context.autocast():
            parts = parts_of(len(noise), self.settings.accumulate)
            return torch.cat([self.generator(noise[rows], condition[rows]) for rows in parts])

    def _noise(self, draws: Draws) -> Tensor:
        return self.generator.noise_of(draws.normal, self.dataset.conditions.slots)

    def _score(self, x: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
        with self.context.autocast():
            return self.critic(x, condition)

    def _critic_step(
        self, step: int, draws: Draws, index: Tensor, fake: Tensor, coming: Coming | None = None
    ) -> dict[str, Tensor]:
        s = self.settings
        real, condition = self._real_batch(index, coming), self.dataset.conditions[index]
        first, last = s.gamma
        gamma = last + (first - last) * (1 + math.cos(math.pi * step / s.steps)) / 2
        mix = draws.uniform(1, 1, 1) if self.loss.penalised else None
        parts, found, of_labels = parts_of(len(real), s.accumulate), [], self._label_loss(condition)
        for rows in parts:
            loss, terms = critic_loss(
                self.loss,
                self._score,
                real[rows],
                fake[rows],
                condition[rows],
                CriticWeights(s.penalty, gamma, s.auxiliary),
                of_labels,
                None if mix is None else mix[rows],
                max(1, round(len(real[rows]) * s.penalty_share)),
            )
            self.optimizers[1].add(loss, len(parts), last=rows is parts[-1])
            found.append(terms)
        gap = "wasserstein" if self.loss.penalised or self.loss.clipped else "score_gap"
        names = {"gap": gap, "auxiliary": "auxiliary_real"}
        metrics = {names.get(name, name): term for name, term in means(found).items()}
        metrics["critic_gradient_norm"] = self.optimizers[1].take(step)
        metrics |= {f"layer {name}": norm for name, norm in self.optimizers[1].layer_norms.items()}
        if self.loss.clipped:
            weights: list[Tensor] = [*self.optimizers[1].parameters]
            with torch.no_grad():
                torch._foreach_clamp_min_(weights, -s.weight_clip)
                torch._foreach_clamp_max_(weights, s.weight_clip)
        return metrics

    def step(self, step: int, draws: Draws) -> dict[str, Tensor]:
        s = self.settings
        parts = s.critic_steps + 1
        *shown, last = (draws.pictures(self.rows, part, parts) for part in range(parts))
        for (index, coming), fake in zip(shown, self._fakes([index for index, _ in shown], draws), strict=True):
            metrics = self._critic_step(step, draws, index, fake, coming)
        metrics |= self._generator_step(step, *last, draws)
        self.ema.update(step)
        return metrics

    def _generator_step(self, step: int, index: Tensor, coming: Coming, draws: Draws) -> dict[str, Tensor]:
        condition, noise, found = self.dataset.conditions[index], self._noise(draws), []
        real = self._real_batch(index, coming) if self.loss.paired else None
        parts, of_labels = parts_of(len(noise), self.settings.accumulate), self._label_loss(condition)
        for rows in parts:
            asked, real_scores = condition[rows], None
            with self.context.autocast():
                scored, logits = self.critic(self.generator(noise[rows], asked), asked)
                if real is not None:
                    with torch.no_grad():
                        real_scores = self.critic(real[rows], asked)[0]
            loss = self.loss.generator(scored, real_scores)
            if logits is not None:
                found.append({"auxiliary_fake": of_labels(logits, asked)})
                loss = loss + auxiliary_weight(self.settings, step) * found[-1]["auxiliary_fake"]
            self.optimizers[0].add(loss, len(parts), last=rows is parts[-1])
        return {**(means(found) if found else {}), "generator_gradient_norm": self.optimizers[0].take(step)}

    def _label_loss(self, condition: Condition) -> LabelLoss:
        """Returns the critic's loss on labels, for the parts of a batch: of all processes' sets where it contrasts."""
        others = distributed.gathered(condition.labels) if self.settings.critic.contrasts else None
        return partial(auxiliary_loss, average=self._average(condition), others=others)

    def _average(self, condition: Condition) -> Callable[[Tensor], Tensor]:
        """Returns what `cell_loss` asks for: the average weight over the processes and parts that share the batch."""
        if self.settings.accumulate == 1:
            return distributed.average
        side, _ = self.settings.levels(self.dataset.size)["critic"]
        weights = cell_weights(cell_labels(condition, side), condition.classes)  # only a critic that reads places asks
        weight = distributed.average(weights.sum()) / self.settings.accumulate
        return lambda part: weight

    def preview(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        sampler = GanSampler(self.context, self.ema.average, self.settings, self.vae, self.layouts)
        return preview(sampler, self.dataset, accuracy_by(self.evaluator, self.context), self.context.config.eval)

    def export(self) -> tuple[dict[str, Tensor], dict]:
        return self.ema.average.state_dict() | self.layouts.state_dict(), {
            "classes": len(self.dataset.vocabulary),
            "latent_channels": self.latent_channels,
            "objects": self.dataset.vocabulary.names,
        }


def fresh_task(context: Context, dataset: Dataset) -> GanTask:
    """Returns the untrained task on a data set's pictures, or on their latents."""
    if not context.config.gan.on_latents:
        return GanTask(context, dataset, None)
    vae, about = load_vae(context)
    return GanTask(context, dataset, vae, about["sha256"])


def main(context: Context) -> None:
    dataset = load_dataset(context.config, context.device)
    dataset.must_know(context.config, "gan")
    parents, vae = dataset.parents, None
    if context.config.gan.space == "latents":
        vae, about = load_vae(context)
        parents |= {"vae": about["sha256"], **latents_kind(vae, dataset, context)}
    if context.config.gan.takes_places:
        parents["places"] = dataset.places_sha256
    run = Run(context, "gan", parents)
    if not run.finished():
        run.train(GanTask(context, dataset, vae, parents.get("vae", "")))


if __name__ == "__main__":
    run_command(COMMANDS["gan"], main)
