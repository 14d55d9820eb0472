"""Training task and sampler that latent and pixel diffusion share, for any network (x_t, t, condition, keep)."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Generic

import torch
from torch import Tensor, nn

from models.condition import Condition
from models.diffusion import Diffusion, weighted_timesteps
from models.layouts import LayoutPrior
from models.samplers import SAMPLERS, Denoiser, Score, guided, guided_and_told, score_of
from models.self_condition import Remembering, first_estimate, predict
from stages.engine import distributed
from stages.engine.command import Context
from stages.engine.compiled import compile_network
from stages.engine.dataset import Dataset
from stages.engine.drawn import Drawn
from stages.engine.draws import Coming, Draws
from stages.engine.ema import Ema, Network
from stages.engine.errors import UserError
from stages.engine.learnable import diffusion_of
from stages.engine.log import Metric, say
from stages.engine.optim import Optimizer
from stages.engine.parts import parts_of
from stages.engine.run import Part
from stages.engine.sampling import (
    Draw,
    in_batches,
    preview,
    takes_places,
    takes_turns,
    with_chosen_places,
    with_chosen_turns,
)
from stages.engine.schema import Denoising, Eval
from stages.engine.trained import held_in

Decoded = Callable[[], Tensor]  # decodes when it is called: (b, 3, s, s) in [-1, 1] or a little beyond
Watch = Callable[[int, Decoded, Decoded], None]
LogProbability = Callable[[Tensor, Tensor], Tensor]


class DiffusionSampler:
    """Samples pictures by any of SAMPLERS, with either guidance. `decode` turns x (b, *shape) into (b, 3, s, s).

    `log_probability`, for classifier guidance, maps pictures and their labels to log p(labels | picture), (b,).
    """

    def __init__(
        self,
        context: Context,
        stage: str,
        network: nn.Module,
        settings: Denoising,
        shape: tuple[int, ...],
        decode: Callable[[Tensor], Tensor],
        layouts: LayoutPrior,
        log_probability: LogProbability | None = None,
    ):
        self.context, self.stage, self.network, self.shape, self.decode = context, stage, network, shape, decode
        self.layouts = layouts
        self.log_probability, self.knows_no_labels = log_probability, settings.label_dropout > 0
        self.diffusion = diffusion_of(settings, context.device)

    def _denoiser_and_score(self, condition: Condition, how: Eval) -> tuple[Denoiser, Score | None]:
        """Returns a denoiser for one batch, guided as `how` says, and with classifier guidance its score.

        The score is the classifier's gradient on the x_0 predicted from x_t, through network and decoder.
        """
        remembering = Remembering(self.network, self.diffusion, condition)

        def predict(*keep: bool) -> Denoiser:
            def denoise(x: Tensor, t: int) -> Tensor:
                with self.context.autocast():
                    return remembering(x, t, keep)

            return denoise

        conditional, both = predict(True), predict(True, False)
        when = (how.guidance, len(self.diffusion), how.interval)
        denoiser = guided(conditional, predict(False), both, *when)
        if how.classifier_guidance == 0:
            return denoiser, None
        if (of_picture := self.log_probability) is None:
            raise UserError(f"eval.classifier_guidance: {self.stage} has no guide; set it to 0")

        def log_probability(told: Tensor, x: Tensor, t: int) -> Tensor:
            x0, _ = self.diffusion.to_x0_and_noise(told, x, t)
            return of_picture(self.decode(x0), condition.labels)

        return denoiser, score_of(guided_and_told(conditional, both, *when), log_probability, how.classifier_guidance)

    def _steps(
        self, condition: Condition, how: Eval, draw: Callable[[], Tensor]
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        solver, (denoiser, score) = SAMPLERS[how.sampler], self._denoiser_and_score(condition, how)
        known = {"eta": how.eta, "clip": how.clip, "score": score, "draw_noise": draw}
        options = {name: known[name] for name in solver.options}
        return solver.solve(denoiser, self.diffusion, draw(), self.times(how), **options)

    def times(self, how: Eval) -> list[int]:
        """Returns the timesteps that a sampling visits, falling: `watch` is called once for each."""
        return SAMPLERS[how.sampler].times(self.diffusion, how.steps, how.spacing)

    @property
    def takes_places(self) -> bool:
        return takes_places(self.network)

    def sample(self, condition: Condition, keys: list[tuple], how: Eval, watch: Watch | None = None) -> Tensor:
        """Samples n pictures (n, 3, s, s) in [-1, 1], one for each condition and key.

        `watch` is called at each step with t and two functions, which decode x and the predicted x_0 when they are
        called: that takes as long as a step. Raises UserError.
        """
        return self._sampled(condition, keys, how, lambda x: self.decode(x).float().clamp(-1, 1), watch)

    def undecoded(self, condition: Condition, keys: list[tuple], how: Eval) -> Tensor:
        """Samples as `sample` does, and returns x (n, *shape) as it is before it is decoded."""
        return self._sampled(condition, keys, how, lambda x: x)

    def completed(self, condition: Condition, keys: list[tuple], how: Eval) -> Condition:
        """Returns what `sample` gives the network: with a place and a turn for each object, if it reads them."""
        if self.takes_places:
            condition = with_chosen_places(condition, keys, self.layouts, how)
        return with_chosen_turns(condition, keys, how) if takes_turns(self.network) else condition

    @torch.no_grad()
    def _sampled(
        self,
        condition: Condition,
        keys: list[tuple],
        how: Eval,
        finish: Callable[[Tensor], Tensor],
        watch: Watch | None = None,
    ) -> Tensor:
        if not SAMPLERS[how.sampler].every_timestep and how.steps > len(self.diffusion):
            raise UserError(f"eval.steps ({how.steps}) must not exceed {self.stage}.timesteps ({len(self.diffusion)})")
        if how.guidance != 1 and not self.knows_no_labels:
            raise UserError(
                f"guidance {how.guidance:g}: this {self.stage} was trained with label_dropout=0 and never saw a "
                f"picture without labels; set guidance to 1"
            )
        condition = self.completed(condition, keys, how)

        def shown(x: Tensor, wanted: int) -> Tensor:
            return self.decode(x)[:wanted]

        def make(condition: Condition, draw: Draw, wanted: int) -> Tensor:
            for t, x, x0 in self._steps(condition, how, lambda: draw(*self.shape)):
                if watch is not None:
                    watch(t, partial(shown, x, wanted), partial(shown, x0, wanted))
            return finish(x)

        return in_batches(condition, keys, how.batch, self.context.device, make)


def denoising_errors(
    context: Context,
    network: nn.Module,
    diffusion: Diffusion,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    condition: Condition,
    keep: Tensor | None = None,
    first_row: int = 0,
) -> Tensor:
    """Returns the mean squared error (b,) of the prediction from x0 (b, c, h, w), noised to timesteps t (b,).

    `first_row`: the place of x0's first row in the global batch.
    """
    xt = diffusion.noised(x0, noise, t)
    with context.autocast():
        estimate = first_estimate(network, diffusion, xt, t, condition, keep, first_row)
        prediction = predict(network, xt, t, condition, keep, estimate)
    return (prediction - diffusion.target(x0, noise, t)).square().mean(dim=(1, 2, 3))


class DiffusionTask(Generic[Network]):
    """Trains on the weighted squared error of the prediction from noised x_0.

    It drops conditions, and places and turns alone. `clean(index, coming)` gives x_0 of those pictures;
    `sampler_of(network, layouts)` gives a sampler for previews.
    """

    def __init__(
        self,
        context: Context,
        stage: str,
        settings: Denoising,
        dataset: Dataset,
        network: Network,
        clean: Callable[[Tensor, Coming], Tensor],
        sampler_of: Callable[[Network, LayoutPrior], DiffusionSampler],
        accuracy: Callable[[Tensor, Tensor], float],
        facts: dict,
    ):
        self.context, self.settings, self.dataset = context, settings, dataset
        self.network, self.clean, self.sampler_of, self.accuracy, self.facts = (
            network,
            clean,
            sampler_of,
            accuracy,
            facts,
        )
        self.layouts = LayoutPrior.of(dataset.conditions) if takes_places(network) else LayoutPrior()
        self.ema = Ema(network, settings.ema)
        if settings.compile:  # after the average was copied: previews are not compiled
            compile_network(network, context.device, settings.compile)
        self.optimizers = [Optimizer(network, settings, context.dtype)]
        self.parts: dict[str, Part] = {"network": network, "ema": self.ema.average, "optimizer": self.optimizers[0]}
        self.diffusion = diffusion_of(settings, context.device)
        rows = dataset.apart(settings.apart, key := f"{stage}.apart")
        if rows is not None:
            say(f"{key}={settings.apart:g}: it learns from {len(rows):,} of {len(dataset.images):,} pictures")
        self.rows = Drawn(dataset.conditions, settings.picture_draws, rows)
        every = torch.arange(settings.timesteps, device=context.device)
        self.weights = self.diffusion.loss_weight(every, settings.min_snr, settings.bound, settings.log_snr)

    def step(self, step: int, draws: Draws) -> dict[str, Metric]:
        s, (index, coming) = self.settings, draws.pictures(self.rows)
        x0, condition = self.clean(index, coming), self.dataset.conditions[index]
        (t, weights), noise = self._timesteps(draws), draws.normal(*x0.shape[1:])
        keep = draws.uniform() >= s.label_dropout
        if takes_places(self.network):
            condition = condition.only_placed(draws.uniform() >= s.place_dropout)
        self.network.train()
        parts, found, first = parts_of(len(x0), s.accumulate), [], distributed.rank() * len(x0)
        for rows in parts:
            of_part = x0[rows], noise[rows], t[rows], condition[rows], keep[rows], first + rows.start
            errors = denoising_errors(self.context, self.network, self.diffusion, *of_part)
            self.optimizers[0].add((weights[rows] * errors).mean(), len(parts), last=rows is parts[-1])
            found.append(errors.detach())
        norm, errors = self.optimizers[0].take(step), torch.cat(found)
        self.ema.update(step)
        return {"loss": (weights * errors).mean(), "gradient_norm": norm, **self._by_quartile(errors, t)}

    def _timesteps(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Draws timesteps (b,) and the weights (b,) of their losses.

        `weighted` draws each timestep in proportion to its loss weight, evenly over the batch, and weighs all alike:
        the same loss in expectation with less variance. Half of uniform draws would have almost no weight.
        """
        if self.settings.timestep_draws == "uniform":
            t = draws.integers(self.settings.timesteps)
            return t, self.weights[t]
        t = weighted_timesteps(draws.stratified(), self.weights)
        return t, self.weights.mean().expand(len(t))

    def _by_quartile(self, errors: Tensor, t: Tensor) -> dict[str, Metric]:
        """Returns sum and count of the unweighted error in each quarter of the timesteps, for the log."""
        quarter = t * 4 // self.settings.timesteps
        found = (quarter == torch.arange(4, device=t.device)[:, None]).float()
        sums, counts = (errors * found).sum(1), found.sum(1)
        return {f"error_q{q + 1}": (sums[q], counts[q]) for q in range(4)}

    def preview(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        quick = {"sampler": "ddim", "steps": min(20, self.context.config.eval.steps, len(self.diffusion))}
        how = self.context.config.eval.model_copy(update=quick)
        average = self.ema.average
        if self.context.dtype != torch.float32:
            average = held_in(deepcopy(average), self.context.dtype)
        return preview(self.sampler_of(average, self.layouts), self.dataset, self.accuracy, how)

    def export(self) -> tuple[dict[str, Tensor], dict]:
        return self.ema.average.state_dict() | self.layouts.state_dict(), self.facts
