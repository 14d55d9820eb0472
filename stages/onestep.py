"""`make onestep`: distils the LDM into a generator that draws by one call of the network.

Pairs of noise and what the LDM makes of it are drawn once. The generator is the LDM's own network: from the same
noise, at the last timestep, it learns to predict what the LDM reaches in many steps (arXiv 2405.05967), and to satisfy
a critic that reads the LDM's features (arXiv 2403.12015). The LDM's guidance is in the pairs: sampling needs none.
"""

from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

from models.adversarial import LOSSES
from models.condition import Condition, unknown_turns
from models.distillation import DISTANCES, FeatureCritic
from models.samplers import sampling_timesteps
from models.self_condition import predict
from models.unet import UNet
from stages.commands import COMMANDS
from stages.diffusion import DiffusionSampler
from stages.engine import distributed
from stages.engine.command import Context, run_command
from stages.engine.compiled import compile_network
from stages.engine.dataset import Dataset, load_dataset
from stages.engine.drawn import Drawn
from stages.engine.draws import Draws, batch_indices, sample_generator
from stages.engine.ema import Ema
from stages.engine.errors import UserError
from stages.engine.export import load_export, read_about, save_export
from stages.engine.log import Metric, progress
from stages.engine.optim import Optimizer
from stages.engine.parts import means, parts_of
from stages.engine.rules import refuse_missing_section, refuse_undistillable
from stages.engine.run import Part, Run
from stages.engine.sampling import preview
from stages.engine.schema import Eval, Ldm, Onestep, flatten
from stages.engine.trained import load_trained
from stages.judge import accuracy_by, load_evaluator, refuse_other_pictures
from stages.ldm import build_unet, latent_sampler, load_sampler
from stages.ldm import fresh_task as fresh_ldm
from stages.vae import load_vae_of

HINGE = LOSSES["hinge"]
ONE_CALL = {
    **{"sampler": "ddim", "steps": 1, "spacing": "trailing", "eta": 0.0},  # DDIM's only step ends at the predicted x_0
    **{"guidance": 1.0, "classifier_guidance": 0.0},  # the pairs were guided
}
PART = 512  # pairs that are made and kept together: what a killed command loses at most
# what the pairs depend on, of a run's identity
OF_PAIRS = ("parent ", "seed", "precision", "onestep.chosen_places", "onestep.picture_draws")


def section_of(context: Context) -> Onestep:
    """Returns the configuration's `onestep` section. Raises UserError if it has none."""
    refuse_missing_section(context.config, "onestep", context.arguments.config)
    assert context.config.onestep is not None
    return context.config.onestep


class OneStepSampler:
    """Samples pictures by one network call, from the noise, places and turns that the LDM takes for the same key."""

    def __init__(self, sampler: DiffusionSampler):
        self.sampler = sampler

    @property
    def takes_places(self) -> bool:
        return self.sampler.takes_places

    def sample(self, condition: Condition, keys: list[tuple], how: Eval) -> Tensor:
        """Draws (n, 3, s, s) in [-1, 1]. Of `how` only the batch and `places` have an effect."""
        return self.sampler.sample(condition, keys, how.model_copy(update=ONE_CALL))


def build_generator(teacher: dict) -> UNet:
    """Builds the generator's network as the description `teacher` of an LDM's export says."""
    settings = Ldm.model_validate(teacher["config"], strict=False)
    return build_unet(settings, teacher["inputs"], teacher["classes"], teacher["most"])


def load_onestep(context: Context) -> tuple[OneStepSampler, dict]:
    """Loads the experiment's generator as a sampler, and the description in its export.

    Raises UserError if it was distilled from another LDM than the experiment's, or trained on another autoencoder.
    """
    network, _, about, layouts = load_trained(context, "onestep", Onestep, lambda s, a: build_generator(a["teacher"]))
    ldm, distilled_from = read_about(context.export("ldm"), f"run {context.make('ldm')}"), about["parents"]["ldm"]
    if ldm["sha256"] != distilled_from:
        raise UserError(
            f"{context.export('onestep')} was distilled from another LDM (ldm: {distilled_from[:12]} -> "
            f"{ldm['sha256'][:12]}); train it again with {context.make('onestep FRESH=1')}"
        )
    if how := context.config.eval.compile:
        compile_network(network, context.device, how, constant=True)
    settings = Ldm.model_validate(about["teacher"]["config"], strict=False)
    vae = load_vae_of(context, "onestep", about)
    return OneStepSampler(latent_sampler(context, network, vae, settings, layouts, None, "onestep")), about


class Pairs(NamedTuple):
    """Noise (n, c, s/8, s/8), the latents that the teacher makes of it, and the n conditions, on the device."""

    noise: Tensor
    latents: Tensor
    conditions: Condition


def pairs_of(tensors: dict[str, Tensor], dataset: Dataset, context: Context) -> Pairs:
    """Returns the pairs that the tensors of `make_part` hold, on the device."""
    on_device = {name: values.to(context.device) for name, values in tensors.items()}
    objects = on_device["objects"]
    turns = on_device.get("turns", unknown_turns(objects))  # pairs of an older version have none
    conditions = Condition(objects, on_device["places"], turns, len(dataset.vocabulary))
    return Pairs(on_device["noise"], on_device["latents"], conditions)


def make_part(
    context: Context, teacher: DiffusionSampler, dataset: Dataset, rows: Tensor, first: int
) -> dict[str, Tensor]:
    """Makes the pairs from number `first` on, of what the training pictures `rows` (n,) show. Returns host tensors.

    Each pair depends on its number, not on those beside it. With chosen places it is asked for as an evaluation asks.
    """
    seed, how = context.config.seed, context.config.eval
    keys = [(seed, "onestep", "pair", first + i) for i in range(len(rows))]
    chosen = torch.rand(len(rows), generator=sample_generator(seed, "onestep", "chosen places", first))
    asked = dataset.conditions[rows].to("cpu").only_placed(chosen >= section_of(context).chosen_places)
    asked = teacher.completed(asked, keys, how)
    latents = teacher.undecoded(asked, keys, how)
    noise = torch.stack([torch.randn(teacher.shape, generator=sample_generator(*key)) for key in keys])
    known = {"objects": asked.objects, "places": asked.places, "turns": asked.turns.contiguous()}
    return {"noise": noise, "latents": latents.cpu(), **known}


def made_pairs(run: Run, teacher: DiffusionSampler, dataset: Dataset) -> Pairs:
    """Returns the run's pairs, and makes those that are not in its folder yet; several processes share the work.

    Raises UserError if the folder holds pairs of other settings.
    """
    context, settings = run.context, section_of(run.context)
    folder, identity = run.folder / "pairs", {k: v for k, v in run.identity.items() if k.startswith(OF_PAIRS)}
    firsts = range(0, settings.pairs, PART)
    paths = [folder / f"{first:08d}-{min(first + PART, settings.pairs):08d}.safetensors" for first in firsts]
    for path in filter(lambda path: path.exists(), paths):
        run.refuse_other(run.identity | read_about(path, "")["pairs"])
    drawn, device = Drawn(dataset.conditions, settings.picture_draws), dataset.conditions.device
    order = drawn[batch_indices(context.config.seed, "onestep", 0, settings.pairs, len(drawn), device)]
    mine = [i for i in range(len(paths)) if i % distributed.world_size() == distributed.rank()]
    missing, made = [i for i in mine if not paths[i].exists()], distributed.patient_barrier()
    if missing:
        for i in progress(missing, f"{run.title}: the LDM draws {settings.pairs} latents"):
            part = make_part(context, teacher, dataset, order[firsts[i] : firsts[i] + PART], firsts[i])
            save_export(paths[i], part, {"pairs": identity})
    made()
    parts = [load_export(path, f"run {context.make('onestep')} again")[0] for path in paths]
    return pairs_of({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, dataset, context)


class OnestepTask:
    """Trains the generator on the distance from its teacher's latents and on a critic of the teacher's features.

    Both networks learn in one step, from one pass through the teacher: the generator is judged by the critic's old
    weights.
    """

    def __init__(self, context: Context, dataset: Dataset, teacher: DiffusionSampler, about: dict, pairs: Pairs):
        self.context, self.dataset, self.teacher, self.pairs = context, dataset, teacher, pairs
        self.settings = s = section_of(context)
        self.described = {key: about[key] for key in ("config", "inputs", "classes", "most")}
        self.objects = about["objects"]
        self.network = context.on_device(build_generator(self.described)).eval()  # no dropout: it repeats its teacher
        self.network.load_state_dict(teacher.network.state_dict())
        self.ema = Ema(self.network, s.ema)
        self.last = sampling_timesteps(teacher.diffusion, 1)[0]
        self.noisy = max(1, round(s.critic.noise * len(teacher.diffusion)))
        self.optimizers = [Optimizer(self.network, s, context.dtype)]
        self.parts: dict[str, Part] = {
            "network": self.network,
            "ema": self.ema.average,
            "optimizer": self.optimizers[0],
        }
        self.critic = None
        if s.critic.weight > 0:
            torch.manual_seed(context.config.seed)
            self.critic = context.on_device(FeatureCritic(self.network.feature_widths, s.critic.channels))
            rate = s.model_copy(update={"learning_rate": s.critic.learning_rate})
            self.optimizers.append(Optimizer(self.critic, rate, context.dtype))
            self.parts |= {"critic": self.critic, "critic_optimizer": self.optimizers[1]}
        self.evaluator, _ = load_evaluator(context, len(dataset.vocabulary))

    def step(self, step: int, draws: Draws) -> dict[str, Metric]:
        s, index = self.settings, draws.indices(len(self.pairs.noise))
        noise, wanted, conditions = self.pairs.noise[index], self.pairs.latents[index], self.pairs.conditions[index]
        t, blur = draws.integers(self.noisy), draws.normal(*wanted.shape[1:])
        parts, found = parts_of(len(index), s.accumulate), []
        for rows in parts:
            made = self.generated(noise[rows], conditions[rows])
            distance = DISTANCES[s.distance](made, wanted[rows])
            loss, terms = distance, {"distance": distance}
            if self.critic is not None:
                inputs = made, wanted[rows], blur[rows], t[rows], conditions[rows]
                terms["critic"], terms["adversarial"] = self.judged(self.critic, *inputs)
                self.optimizers[1].add(terms["critic"], len(parts), last=rows is parts[-1])
                loss = loss + s.critic.weight * terms["adversarial"]
            self.optimizers[0].add(loss, len(parts), last=rows is parts[-1])
            found.append({"loss": loss, **terms})
        metrics: dict[str, Metric] = {**means(found), "gradient_norm": self.optimizers[0].take(step)}
        if self.critic is not None:
            metrics["critic_gradient_norm"] = self.optimizers[1].take(step)
        self.ema.update(step)
        return metrics

    def generated(self, noise: Tensor, condition: Condition) -> Tensor:
        """Returns the generator's latents (b, c, s/8, s/8) from noise of that shape: the x_0 that it predicts."""
        times = torch.full((len(noise),), self.last, device=noise.device)
        with self.context.autocast():
            prediction = predict(self.network, noise, times, condition, None, None)
        return self.teacher.diffusion.to_x0_and_noise(prediction, noise, self.last)[0]

    def judged(
        self, critic: FeatureCritic, made: Tensor, wanted: Tensor, blur: Tensor, t: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        """Returns the critic's loss and the generator's on latents (b, c, s/8, s/8), noised alike by `blur` to t (b,).

        What the teacher makes of the noise counts as real.
        """
        with self.context.autocast():
            fake = self.features(made, blur, t, condition)
            with torch.no_grad():
                real = self.features(wanted, blur, t, condition)
            of_critic = HINGE.critic(critic(real), critic([values.detach() for values in fake]))
            return of_critic, HINGE.generator(critic(fake), None)

    def features(self, latents: Tensor, blur: Tensor, t: Tensor, condition: Condition) -> list[Tensor]:
        """Returns the teacher's features of noised latents."""
        noised = self.teacher.diffusion.noised(latents, blur, t).contiguous(memory_format=torch.channels_last)
        network = self.teacher.network
        assert isinstance(network, UNet)
        return network.features(noised, t, condition)

    def sampler(self) -> OneStepSampler:
        """Returns a sampler with the averaged weights."""
        sampler = copy(self.teacher)
        sampler.stage, sampler.network = "onestep", self.ema.average
        return OneStepSampler(sampler)

    def preview(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        how = self.context.config.eval
        return preview(self.sampler(), self.dataset, accuracy_by(self.evaluator, self.context), how)

    def export(self) -> tuple[dict[str, Tensor], dict]:
        weights = self.ema.average.state_dict() | self.teacher.layouts.state_dict()
        return weights, {"teacher": self.described, "classes": self.described["classes"], "objects": self.objects}


def parents_of(context: Context, dataset: Dataset, teacher: dict) -> dict[str, object]:
    """Returns what a run is made from: data, LDM (`teacher`: its description), autoencoder and how the LDM samples."""
    how, guided = context.config.eval, context.config.eval.classifier_guidance > 0
    parents: dict[str, object] = {**dataset.parents, "ldm": teacher["sha256"], "vae": teacher["parents"]["vae"]}
    network = Ldm.model_validate(teacher["config"], strict=False).network
    if network.wants_layouts:
        parents |= dataset.layouts(network.turns)
    if guided:
        parents["guide"] = read_about(context.export("guide"), "train the evaluator of that experiment")["sha256"]
    not_it = ("eval.seeds", "eval.compile")
    return parents | {k: v for k, v in flatten(how, "eval.").items() if k not in not_it}


def fresh_task(context: Context, dataset: Dataset) -> OnestepTask:
    """Returns the task before its first step, with pairs for one batch only, from an untrained LDM if none is there."""
    if context.export("ldm").exists():
        teacher, about = load_sampler(context)
    else:
        untrained = fresh_ldm(context, dataset)
        teacher = untrained.sampler_of(untrained.ema.average, untrained.layouts)
        about = untrained.facts | {"config": context.config.ldm.model_dump(mode="json")}
    refuse_undistillable(context.config.eval, teacher.diffusion.prediction)
    rows = torch.arange(section_of(context).batch) % len(dataset.images)
    pairs = pairs_of(make_part(context, teacher, dataset, rows, 0), dataset, context)
    return OnestepTask(context, dataset, teacher, about, pairs)


def main(context: Context) -> None:
    section_of(context)
    dataset = load_dataset(context.config, context.device)
    teacher, about = load_sampler(context)
    refuse_other_pictures(context, {"ldm": about}, dataset)
    run = Run(context, "onestep", parents_of(context, dataset, about))
    if run.finished():
        return
    refuse_undistillable(context.config.eval, teacher.diffusion.prediction)
    run.make_way()
    run.train(OnestepTask(context, dataset, teacher, about, made_pairs(run, teacher, dataset)))


if __name__ == "__main__":
    run_command(COMMANDS["onestep"], main)
