"""Estimates how many minutes the rows of `make reproduce` take, from a few steps of each kind, timed once.

So are evaluator and autoencoder, which the rows share: Make trains them first, but not for a plan.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.choices import DIFFUSION
from models.samplers import SAMPLERS
from stages.commands import COMPARED
from stages.engine.checkpoint import checkpoints_in, step_of
from stages.engine.command import Context
from stages.engine.dataset import Dataset, sources_of
from stages.engine.draws import Draws
from stages.engine.errors import UserError
from stages.engine.export import read_about
from stages.engine.files import read_json, write_atomically
from stages.engine.log import say
from stages.engine.machine import describe_device
from stages.engine.run import Task
from stages.evaluator import EvaluatorTask
from stages.experiments.results import said
from stages.experiments.systems import SYSTEMS
from stages.models import MODELS
from stages.reader import EVALUATED
from stages.vae import VaeTask

TIMED, LONGEST = 3, 10.0  # steps that are timed after one to warm up; seconds after which no more are
SHOWN = 128  # training pictures that the timing loads: their number does not matter for a step
CALLS = 2  # network calls of the timed sampling
CLASSIFIED = 5  # times as long as a call takes with classifier guidance, which goes back through decoder and classifier
START_UP = 0.3  # minutes until a child trains: imports, latents
SHARED: dict[str, Callable[[Context, Dataset], Task]] = {"evaluator": EvaluatorTask, "vae": VaeTask}
# keys of a model's section that say how it learns, not how much there is to compute
FREE = {
    *("steps", "warmup", "decay", "log_every", "preview_every", "checkpoint_every", "keep", "compile", "ema", "clip"),
    *("learning_rate", "critic_learning_rate", "betas", "weight_decay", "plateau_factor", "plateau_patience"),
    *("prediction", "schedule", "zero_terminal_snr", "timesteps", "min_snr", "log_snr", "bound", "timestep_draws"),
    *("pairs", "chosen_places", "picture_draws", "label_dropout", "place_dropout", "penalty", "weight_clip", "gamma"),
    *("apart", "auxiliary", "auxiliary_schedule", "layer_norms"),
}


@dataclass(frozen=True)
class Pace:
    """Seconds of a training step, and of one network call in sampling one batch of pictures."""

    step: float
    call: float


def newest_step(home: Context, model: str) -> int:
    """Returns the step of a training's newest checkpoint, 0 if it has not begun, its last step if it is exported."""
    steps = getattr(home.config, model).steps
    if home.export(model).exists():
        return steps
    found = checkpoints_in(home.folder(model))
    return min(steps, step_of(found[-1])) if found else 0


class Paces:
    """The paces that were measured on this kind of machine, in a file."""

    def __init__(self, path: Path, dataset: Callable[[], Dataset]):
        self.path, self.dataset = path, dataset
        self._known = read_json(path)

    def of(self, home: Context, model: str) -> Pace:
        """Returns a model's pace, which is measured if no equally costly model's is known. Raises UserError."""
        cost = _cost_of(home, model)
        key = hashlib.sha256(json.dumps(cost, sort_keys=True).encode()).hexdigest()[:16]
        if key not in self._known:
            say(f"timing a few steps of {home.config.name}/{model} ...")
            found = _measured(home, model, self.dataset())
            self._known[key] = {"step": found.step, "call": found.call, "of": f"{home.config.name}/{model}"}
            write_atomically(self.path, json.dumps(self._known, indent=2).encode())
        return Pace(self._known[key]["step"], self._known[key]["call"])


def _cost_of(home: Context, model: str) -> dict:
    """Returns what a model's time depends on."""
    section = getattr(home.config, model).model_dump(mode="json")
    how = home.config.eval
    teacher = {"teacher": home.config.ldm.network.model_dump(mode="json")} if model == "onestep" else {}  # its network
    return {
        "model": model,
        **teacher,
        "section": {key: value for key, value in section.items() if key not in FREE},
        "guided": [how.guidance not in (0, 1), how.batch],
        "size": home.config.data.size,
        "on": [describe_device(home.device), str(home.dtype)],
    }


def _measured(home: Context, model: str, dataset: Dataset) -> Pace:
    """Times a few steps and one batch of samples of an untrained model."""
    first, asked = next(iter(dataset.test_sets.items()))
    few = replace(
        dataset,
        images=dataset.images[:SHOWN],
        conditions=dataset.conditions[:SHOWN],
        test_sets={first: asked[: home.config.eval.batch]},
    )
    # in memory: files of latents are named after the whole set
    changes = ["data.latents=memory", "eval.sampler=ddim", f"eval.steps={CALLS}", "eval.spacing=trailing"]
    changes.append("eval.classifier_guidance=0.0")  # its classifier may not be there yet
    if model in DIFFUSION:
        changes += [f"{model}.compile=false", f"{model}.apart=0.0"]  # few pictures may have none as far apart
    uses = json.dumps(home.config.uses)
    context = home.derived(home.config.name, *changes, f"uses={uses}")
    task = (SHARED.get(model) or MODELS[model].task)(context, few)
    settings, seconds = getattr(context.config, model), list[float]()
    first_step = max(0, settings.steps - 1 - TIMED) if model == "vae" else 0  # its discriminator begins late
    while len(seconds) < 1 + TIMED and sum(seconds) < LONGEST:
        began = time.perf_counter()
        step = first_step + len(seconds)
        metrics = task.step(step, Draws(context.config.seed, model, step, settings.batch, context.device))
        sum(float(value[0] if isinstance(value, tuple) else value.detach()) for value in metrics.values())  # waits
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    task.preview(0)
    return Pace(min(seconds[1:] or seconds), (time.perf_counter() - began) / CALLS)


@dataclass(frozen=True)
class Estimate:
    """Minutes of one core that are left of a row: training its model, and evaluating it."""

    training: float
    evaluation: float

    @property
    def minutes(self) -> float:
        return self.training + self.evaluation


def estimate(row: Context, home: Context, model: str, pace: Pace, dataset: Dataset) -> Estimate:
    """Estimates what a row lacks. A training continues from its newest checkpoint."""
    section, how = getattr(home.config, model), row.config.eval
    solver = SAMPLERS[how.sampler]
    timesteps = getattr(section, "timesteps", None)
    calls = CALLS if timesteps is None else timesteps if solver.every_timestep else how.steps  # a GAN's one, as timed
    batches = sum(math.ceil(len(asked) / how.batch) for asked in dataset.test_sets.values())
    done = newest_step(home, model)
    previews = section.steps // section.preview_every - done // section.preview_every
    seconds = (section.steps - done) * pace.step + previews * batches * min(20, calls) * pace.call
    training = seconds / 60 + START_UP if done < section.steps else 0.0
    pictures = min(COMPARED, len(dataset.held_out_images) // 2) + 2 * min(EVALUATED, len(dataset.held_out_images))
    more = math.ceil(pictures / how.batch)
    calls *= CLASSIFIED if how.classifier_guidance else 1
    return Estimate(training, (batches * len(how.seeds) + more) * calls * pace.call / 60 + START_UP)


def pairs_minutes(home: Context, pace: Pace) -> float:
    """Returns the minutes in which an LDM of that pace draws the pairs of a one-step generator; 0 once it trains."""
    settings, how = home.config.onestep, home.config.eval
    if settings is None or newest_step(home, "onestep"):
        return 0.0
    return math.ceil(settings.pairs / how.batch) * how.steps * pace.call / 60


def guide_minutes(row: Context) -> float:
    """Returns the minutes of training the guide that a row lacks, as long as the judge's own; 0 if it is there."""
    if "guide" not in row.config.uses or row.export("guide").exists():
        return 0.0
    try:
        return read_about(row.export("evaluator"), "")["seconds"] / 60
    except UserError:
        return 0.0


@dataclass(frozen=True)
class Planned:
    """An unfinished row: the minutes of one core that it still takes, its state, the accuracy that it may gain."""

    key: str
    minutes: float
    state: str
    gain: float
    model: Path  # the folder that its model is trained in
    folders: frozenset[Path]  # that no other row may work in at the same time

    @property
    def rank(self) -> tuple[float, float]:
        return -self.gain / max(self.minutes, 1.0), self.minutes


def in_order(rows: list[Planned]) -> list[Planned]:
    """Returns rows by their rank, but those that train a model before the one that is distilled from it."""

    def place(row: Planned) -> tuple[tuple[float, float], bool]:
        teachers = [other.rank for other in rows if other.model in row.folders - {row.model}]
        return max([row.rank, *teachers]), bool(teachers)

    return sorted(rows, key=place)


@dataclass(frozen=True)
class Shared:
    """What rows share and Make makes before them: a target, its minutes of one core (0: not known), how far it is."""

    stage: str
    minutes: float
    state: str


def missing_shared(context: Context, paces: Paces) -> list[Shared]:
    """Returns scenes, evaluator and autoencoder as far as they are missing. Makes none, times the networks."""
    found = list[Shared]()
    if not context.config.data.folder and not (sources_of(context.config)[0] / "train.json").exists():
        found.append(Shared("scenes", 0.0, "not drawn"))
    for stage in SHARED:
        if not context.export(stage).exists():
            found.append(_shared(context, stage, paces, [other.stage for other in found]))
    return found


def _shared(context: Context, stage: str, paces: Paces, lacks: list[str]) -> Shared:
    """Estimates one of SHARED, which cannot be timed without any of `lacks`."""
    if stage in context.config.uses:
        return Shared(stage, 0.0, f"to be trained first in the experiment {context.experiment_of(stage)}")
    if stage == "evaluator" and context.config.evaluator.checkpoint:
        return Shared(stage, START_UP, "the lab's, to be taken")
    section, done = getattr(context.config, stage), newest_step(context, stage)
    state = f"at step {done:,} of {section.steps:,}" if done else "not begun"
    if lacks:
        return Shared(stage, 0.0, f"{state}; cannot be timed without {', '.join(lacks)}")
    try:
        pace = paces.of(context, stage)
    except UserError as error:
        return Shared(stage, 0.0, f"{state}; cannot be timed: {error}")
    measured = section.steps // section.preview_every - done // section.preview_every + 1  # and before its export
    seconds = (section.steps - done) * pace.step + measured * CALLS * pace.call
    return Shared(stage, seconds / 60 + START_UP, state)


def shared_words(shared: Sequence[Shared], plan: Sequence[Planned]) -> str:
    """Returns a line on what is made before the rows, and how many of them cannot be timed until then."""
    untimed = sum(not row.minutes for row in plan)
    until = f"; {untimed} of the rows cannot be timed until then" if untimed else ""
    minutes = sum(each.minutes for each in shared)
    names = ", ".join(each.stage for each in shared)
    return f"missing: {names}; `make reproduce` without --plan makes them first ({minutes:.1f} minutes known){until}"


def table_of(
    plan: Sequence[Planned], results: dict[str, dict], sets: tuple[str, ...], shared: Sequence[Shared] = ()
) -> str:
    """Returns the plan as lines of text: minutes, row, the report's accuracy, ours, and how far it is.

    What rows share comes first. Minutes that are not known are a question mark.
    """
    lines = [f"{'minutes':>8}  {'row':<36} {'report':<13} {'ours':<13} state"]

    def line(minutes: float, name: str, reported: str, ours: str, state: str) -> None:
        known = f"{minutes:.1f}" if minutes else "?"
        lines.append(f"{known:>8}  {name:<36} {reported:<13} {ours:<13} {state}")

    for each in shared:
        line(each.minutes, each.stage, "-", "-", each.state)
    for row in plan:
        reported = " / ".join(map(said, SYSTEMS[row.key].reported_on(sets).values())) or "-"
        found = results.get(row.key, {}).get("figures", {})
        ours = " / ".join(said(found[name]["accuracy"]) for name in sets if name in found) or "-"
        line(row.minutes, row.key, reported, ours, row.state)
    return "\n".join(lines)
