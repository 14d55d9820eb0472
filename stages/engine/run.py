"""Manages one training run: its folder, its inputs and the loop.

checkpoints/<experiment>/<stage>/
    step-*.ckpt  config.yaml  metrics.jsonl  tensorboard/  previews/  export.safetensors
"""

import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
import yaml
from pydantic import BaseModel
from torch import Tensor

from models.choices import DIFFUSION, MODELS
from stages.engine import distributed
from stages.engine.checkpoint import Checkpoints, checkpoints_in
from stages.engine.command import Context
from stages.engine.draws import Draws, seed_of
from stages.engine.errors import Interrupted, UserError
from stages.engine.export import of_this_version, read_about, refuse_other_size, save_export
from stages.engine.files import write_atomically
from stages.engine.log import Metric, MetricsLog, read_metrics, say
from stages.engine.machine import describe_device, peak_memory, reset_peak, versions
from stages.engine.optim import Optimizer, Witness, first_bad_step
from stages.engine.schema import Eval, flatten
from stages.engine.terminal import ending_signals, ignore_signals, write_at_once

AGREE_EVERY = 8  # steps: processes must wait for their GPUs to agree whether they were asked to stop
# keys of an identity that say how a finished run was made, not what it is
HOW = (
    *("precision", "processes", "parent eval."),
    *(f"{model}.compile" for model in DIFFUSION),
    # like another number of processes: a run continued with other parts would not end with the same bits
    *(f"{stage}.accumulate" for stage in ("evaluator", "reader", "vae", *MODELS)),
)

DATA, SCENES = "parent data", "parent scenes"  # keys of an identity that say what the run learned from
# keys of an identity that older runs did not record, although they may have read them: another key says whether
UNNAMED = ("parent places", "parent order", SCENES)

OTHER_SHAPES = re.compile(r"loading state_dict|size of tensor")  # torch's messages for weights that do not fit


class Part(Protocol):
    """A part of a task that checkpoints store: a network, an average, an optimiser."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict, /) -> object: ...


class Task(Protocol):
    """The interface between a stage and the loop."""

    parts: dict[str, Part]
    optimizers: list[Optimizer]

    def step(self, step: int, draws: Draws) -> Mapping[str, Metric]:
        """Takes one optimiser step. Returns metrics on the device."""

    def preview(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Returns slow metrics and pictures (3, h, w) in [0, 1], at `step`."""

    def export(self) -> tuple[dict[str, Tensor], dict]:
        """Returns tensors and facts for the next stage."""


def differences(old: dict, new: dict) -> list[str]:
    """Returns "key: old -> new" for each key that differs."""
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]


def of_same_pictures(identities: Sequence[Mapping[str, object]]) -> bool:
    """Returns True if runs of these identities learned from the same pictures.

    Scenes drawn here by the same settings count as the same: another processor changes the pictures' last bits.
    """
    found = [{identity.get(key) for identity in identities} for key in (DATA, SCENES)]
    return any(len(values) <= 1 and None not in values for values in found)


def move_aside(folder: Path) -> Path:
    """Renames a run's folder to the first free <stage>.old-N and returns the new path. Nothing is deleted."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside


def page_folder(context: Context, name: str) -> Path:
    """Locks and returns an experiment's folder. An old report is moved aside first: call once a command."""
    folder = context.hold(name)
    if (folder / "report.json").exists():
        say(f"{context.config.name}/{name}: the old report is now {move_aside(folder)}")
    return folder


class Run:
    """The run of one stage. `parents`: hashes of the data and exports it is made from, and settings it depends on."""

    def __init__(self, context: Context, stage: str, parents: Mapping[str, object]):
        self.context, self.stage, self.parents = context, stage, parents
        self.settings = getattr(context.config, stage)
        begun = context.folder(stage) in context.holding  # by this command: it is fresh already
        self.folder = context.hold(stage)
        self.identity = {
            **flatten(self.settings, f"{stage}."),
            "seed": context.config.seed,
            "precision": str(context.dtype).removeprefix("torch."),
            "processes": distributed.processes(),
            **{f"parent {name}": digest for name, digest in parents.items()},
        }
        self.fresh = getattr(context.arguments, "fresh", False) and stage not in context.config.uses and not begun

    @property
    def title(self) -> str:
        return f"{self.context.config.name}/{self.stage}"

    def finished(self) -> bool:
        """Returns True, and prints it, if this run's export exists. Raises UserError if it is from a different run."""
        path = self.context.export(self.stage)
        if user_of := self.context.config.uses.get(self.stage):
            about = read_about(path, f"train it first in the experiment {user_of}, or remove {self.stage} from `uses`")
            refuse_other_size(path, about, self.context.config.data.size)
            say(f"{self.title}: using the export of experiment {user_of}: {path}")
            return True
        if self.fresh or not path.exists():
            return False
        about = read_about(path, f"run {self.context.make(self.stage)} again")
        refuse_other_size(path, about, self.context.config.data.size)
        with of_this_version(path, self.context.make(f"{self.stage} FRESH=1")):
            made = {key: value for key, value in about["identity"].items() if not key.startswith(HOW)}
            took = f"{about['steps']} steps, {about['seconds'] / 60:.1f} min"
        self.refuse_other(made | {key: value for key, value in self.identity.items() if key.startswith(HOW)})
        say(f"{self.title}: finished already ({took}): {path}")
        return True

    def refuse_other(self, identity: dict) -> None:
        since = {k: v for k, v in self._defaults().items() if k in self.identity and k not in identity}
        since |= {k: self.identity[k] for k in UNNAMED if k in self.identity and k not in identity}
        if SCENES not in self.identity:  # a pack that replaces its folder is known by its pictures alone
            identity = {key: value for key, value in identity.items() if key != SCENES}
        changes = differences(identity | since, self.identity)
        if changes:
            shown = "; ".join(changes[:6]) + (f"; and {len(changes) - 6} more" if len(changes) > 6 else "")
            raise UserError(
                f"{self.folder} holds another run ({shown}); restore its settings, set another `name=`, or start "
                f"again with --fresh ({self.context.make(f'{self.stage} FRESH=1')}), which moves the old run aside"
            )

    def _defaults(self) -> dict[str, object]:
        """Returns defaults of this stage's section and of how its LDM samples. They hold for a run older than a key."""
        fields = type(self.settings).model_fields.items()
        optional = {name: field.default for name, field in fields if not field.is_required()}
        plain = {k: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for k, v in optional.items()}
        return flatten(plain, f"{self.stage}.") | flatten(Eval(), "parent eval.")

    def make_way(self) -> None:
        """With --fresh, moves the old run aside. Call it once everything that the new run needs is there."""
        if self.fresh and self.folder.exists() and distributed.is_main():
            say(f"{self.title}: the old run is now {move_aside(self.folder)}")
        distributed.barrier()
        self.fresh = False  # what is there from now on is this run's

    def train(self, task: Task, until: Callable[[dict], bool] | None = None) -> None:
        """Trains to the last step, from the last checkpoint if there is one, and exports.

        With `until`, a run of one process ends before its last step, at the first line of metrics.jsonl with a
        preview's metrics that satisfies it. It ends with a checkpoint, from which it can resume, and without an export.
        When the run is resumed, `until` sees all lines, including those of steps.
        """
        self.make_way()
        settings, device = self.settings, self.context.device
        checkpoints = Checkpoints(self.folder, settings.keep, say)
        log = MetricsLog(self.folder, settings.log_every, settings.steps, settings.batch, self.title)
        seconds_before, start = self._restore(checkpoints, task, log)
        self._write_config()
        stop, witness = _StopFlag(), Witness(task.optimizers)
        agree_every = AGREE_EVERY if distributed.world_size() > 1 and device.type == "cuda" else 1
        measures_memory = reset_peak(device)

        def seconds() -> float:  # of all commands together, including reading and encoding the pictures
            return seconds_before + time.perf_counter() - self.context.began

        def save(step: int) -> None:
            self._refuse_non_finite(task, witness)
            if distributed.is_main():
                state = {name: part.state_dict() for name, part in task.parts.items()}
                run = {"identity": self.identity, "log": log.state_dict(), "seconds": seconds(), "device": device.type}
                checkpoints.save(step, {"parts": state, **run})
            distributed.barrier()

        log.begin(start)
        enough = until is not None and start < settings.steps and any(map(until, read_metrics(log.path)))
        with stop:
            for step in range(start, start if enough else settings.steps):
                torch.manual_seed(seed_of(self.context.config.seed, self.stage, step, distributed.rank()))
                draws = Draws(self.context.config.seed, self.stage, step, settings.batch, device)
                metrics = task.step(step, draws)
                witness.note(metrics)
                log.add(metrics)
                done = step + 1
                last = done == settings.steps
                if done % settings.log_every == 0 or last:
                    self._refuse_non_finite(task, witness)
                    log.flush(done)
                if done % settings.preview_every == 0 or last:
                    found = self._preview(task, log, done, seconds)
                    enough = until is not None and until({"step": done, **found}) and not last
                stopped = distributed.any_process(stop.number, device) if done % agree_every == 0 else 0
                if done % settings.checkpoint_every == 0 or last or stopped or enough:
                    save(done)
                if stopped:
                    log.close()
                    raise Interrupted(stopped)
                if enough:
                    break
            if late := distributed.any_process(stop.number, device):  # during the last save
                log.close()
                raise Interrupted(late)
        log.close()
        if enough:
            say(f"{self.title}: target reached, stopping before step {settings.steps}")
        else:
            self._export(task, seconds, measures_memory)

    def _restore(self, checkpoints: Checkpoints, task: Task, log: MetricsLog) -> tuple[float, int]:
        state = checkpoints.load_latest()
        step = state["step"] if state else 0
        most, least = (s * distributed.any_process(s * step, self.context.device) for s in (1, -1))
        if most != least:
            raise UserError(
                f"{self.folder}: the processes see different checkpoints (of steps {least} and {most}); let all "
                f"machines share one folder"
            )
        if state is None:
            return 0.0, 0
        self.refuse_other(state["identity"])
        try:
            for name, part in task.parts.items():
                part.load_state_dict(state["parts"][name])
        except (KeyError, ValueError, RuntimeError) as error:  # other names, shapes or groups of weights
            if isinstance(error, RuntimeError) and not OTHER_SHAPES.search(str(error)):
                raise  # the device's, or out of memory
            raise UserError(
                f"{self.folder} was started by another version of this program, whose checkpoints do not fit; start "
                f"again with --fresh ({self.context.make(f'{self.stage} FRESH=1')}), which moves the old run aside"
            ) from None
        log.load_state_dict(state["log"], self.context.device)
        say(f"{self.title}: continuing at step {state['step']} of {self.settings.steps}")
        if (before := state.get("device", self.context.device.type)) != self.context.device.type:
            now = self.context.device.type
            say(f"{self.title}: started on {before}, now on {now}: the random numbers differ, so the result will too")
        return state["seconds"], state["step"]

    def _write_config(self) -> None:
        if distributed.is_main():
            text = yaml.safe_dump(self.context.config.model_dump(mode="json"), sort_keys=False)
            write_atomically(self.folder / "config.yaml", text.encode())

    def _preview(self, task: Task, log: MetricsLog, step: int, elapsed: Callable[[], float]) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):
            metrics, pictures = task.preview(step)
        if metrics:
            log.write(step, metrics, seconds=elapsed())
        for name, grid in pictures.items():
            log.picture(name, step, grid)
        return metrics

    def _refuse_non_finite(self, task: Task, witness: Witness) -> None:
        step = first_bad_step(task.optimizers)
        if step is not None:
            last = next(reversed(checkpoints_in(self.folder)), "none yet")
            raise UserError(
                f"{self.title}: a gradient was not finite at step {step} ({witness.words()}); that step was not saved, "
                f"the last good checkpoint is {last}; start again with --fresh and a lower {self.stage}.learning_rate "
                f"or precision=float32"
            )

    def _refuse_broken_weights(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise UserError(
                    f"{self.title}: {name} is not finite after the last step, so nothing is exported; start again with "
                    f"--fresh and a lower {self.stage}.learning_rate"
                )

    def _export(self, task: Task, elapsed: Callable[[], float], measures_memory: bool) -> None:
        tensors, facts = task.export()
        seconds = elapsed()
        if distributed.is_main():
            about = {
                "stage": self.stage,
                "identity": self.identity,
                "parents": self.parents,
                "size": self.context.config.data.size,
                "config": self.context.config.model_dump(mode="json")[self.stage],
                "steps": self.settings.steps,
                "seconds": seconds,
                "peak_memory_bytes": peak_memory(self.context.device) if measures_memory else None,
                "versions": versions(),
                "device": describe_device(self.context.device),
                **facts,
            }
            path = self.context.export(self.stage)
            self._refuse_broken_weights(tensors)
            save_export(path, tensors, about)
            say(f"{self.title}: done in {seconds / 60:.1f} min: {path}")
        distributed.barrier()


class _StopFlag:
    """Context manager that remembers a signal to end so that the step can finish; a later one stops at once.

    A signal within seconds of the first counts as the same: Make and torchrun pass on what the terminal sends to all.
    """

    def __init__(self):
        self.number, self._first = 0, 0.0

    def _note(self, number: int, frame: object) -> None:
        if self.number:
            if time.monotonic() - self._first > 3:
                ignore_signals()
                raise Interrupted(number)
            return
        self.number, self._first = number, time.monotonic()
        write_at_once("\nstopping after this step ...\n")

    def __enter__(self) -> "_StopFlag":
        self._old = {n: signal.signal(n, self._note) for n in ending_signals()}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
