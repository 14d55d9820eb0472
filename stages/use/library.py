"""`from stages import load`: draws pictures, follows their denoising and judges them from Python (docs/library.md).

Nothing in the process changes: no signal handlers, no arguments, no printing; the random generators, the number of
threads and torch's settings are what they were. Every error of the library is one UserError with one line.
"""

import os
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from data.labels import DataError, Place, Vocabulary
from models.choices import DIFFUSION
from models.condition import Condition
from stages.diffusion import Decoded, DiffusionSampler, Watch
from stages.engine.command import Context, device_of, precision_of
from stages.engine.config import derive
from stages.engine.errors import UserError, is_out_of_memory, of_the_system, oneline
from stages.engine.pictures import image_of
from stages.engine.rules import refuse_asked_places
from stages.engine.sampling import Sampler
from stages.engine.schema import Eval
from stages.models import MODELS
from stages.use.asked import guidance_scale, require_functions, whole, with_places
from stages.use.exact import exact_float32
from stages.use.facts import Facts, facts_of
from stages.use.find import available, configuration_of, is_release, refuse_tampered
from stages.use.verdict import Judge, Verdict

BATCH = 8  # pictures drawn at once: one size, so that picture i is the same for any count
LARGEST = 4096  # the largest batch: every batch is filled to its size, so a single picture would cost as much
FEWER, FREE = "ask for fewer pictures, or a smaller batch", "free some, or use another device"  # where memory is short
Pictures = list[Image.Image]
OnStep = Callable[[int, int, Pictures], object]

_turn = threading.RLock()  # one at a time: loads share networks, and drawing needs torch's settings for a while


@dataclass(frozen=True)
class Frame:
    """One step of a denoising: `step` of `steps`, from 1; the timestep t that it left; pictures in order.

    `x` shows the noisy sample after the step, `predicted` the final picture as the network predicts it there. In the
    last frame x is what `draw` returns.
    """

    step: int
    steps: int
    t: int
    x: Pictures
    predicted: Pictures


class Experiment:
    """The trained models of one experiment. `load` makes it; any thread may use it.

    `models`: the names of those that are trained. `model`: the one that draws by default. `objects`: the names that can
    be asked for. `size`: a picture's side in pixels.
    """

    def __init__(self, context: Context, model: str | None = None):
        self._context, self._loaded = context, dict[str, tuple[Sampler, dict]]()
        config = context.config
        folder = Path(config.root) / config.name
        refuse_tampered(folder)
        self.name, self.size, self.device = config.name, config.data.size, context.device
        self.models = available(config)
        # of others it is said how to train them, but in a release nothing is trained
        self._askable = self.models if is_release(folder) else tuple(MODELS)
        self.model = model or (self.models[0] if self.models else config.drawer)
        self.objects: list[str] = list(self._model(None)[2]["objects"])

    def __repr__(self) -> str:
        return f"<{self.name}: {', '.join(self.models)} on {self.device}>"

    def draw(
        self,
        labels: str,
        count: int = 8,
        seed: int = 0,
        places: Sequence[Place | None] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        on_step: OnStep | None = None,
        model: str | None = None,
        batch: int = BATCH,
    ) -> Pictures:
        """Draws `count` pictures of the objects in `labels`: Pillow images of `size` x `size`, RGB.

        They have the same bits as those of `make sample`. `labels`: "red cube, cyan sphere at 0.7 0.5", x to the right
        and y downwards in [0, 1]; or `places`, one (x, y) or None an object. Where none is given, one is chosen from
        training layouts. `seed` and a picture's number decide its noise. `model`: one of `models`. `steps` (1 or more)
        and `guidance` (0 or more, 1 is none) are for diffusion models; by default they are the configuration's.
        `on_step(step, steps, pictures)` is called after each step, from 1 to `steps`, with the final pictures as they
        are predicted there (a model of one step calls it once); what it raises ends the drawing. Pictures are
        drawn `batch` (1 to 4096) at a time: another batch rounds other sums, and 1 is the fastest for one picture.

        Raises UserError.
        """
        images = self.sample(labels, count, seed, places, steps, guidance, on_step, model, batch)
        return _images(images)

    def sample(
        self,
        labels: str,
        count: int = 8,
        seed: int = 0,
        places: Sequence[Place | None] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        on_step: OnStep | None = None,
        model: str | None = None,
        batch: int = BATCH,
    ) -> Tensor:
        """Does what `draw` does and returns a tensor (count, 3, s, s), float32 in [-1, 1], on the device."""
        require_functions(on_step=on_step)
        name, sampler, about = self._model(model)
        condition, keys, how = self._asked(name, sampler, about, labels, count, seed, places, steps, guidance, batch)
        if on_step is None:
            return self._sampled(sampler, condition, keys, how)
        if not isinstance(sampler, DiffusionSampler):
            images = self._sampled(sampler, condition, keys, how)
            on_step(1, 1, _images(images))
            return images
        done, total = 0, len(sampler.times(how)) * -(-len(keys) // how.batch)

        def watch(t: int, x: Decoded, predicted: Decoded) -> None:
            nonlocal done
            done += 1
            on_step(done, total, _images(predicted()))

        return self._sampled(sampler, condition, keys, how, watch)

    def denoising(
        self,
        labels: str,
        count: int = 1,
        seed: int = 0,
        places: Sequence[Place | None] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        on_frame: Callable[[Frame], object] | None = None,
        model: str | None = None,
        batch: int = BATCH,
    ) -> list[Frame]:
        """Draws as `draw` does and returns a Frame for each step; the last one's `x` are the pictures of `draw`.

        `on_frame(frame)` is called with each frame as it is made, `batch` pictures at a time. Only a diffusion model
        denoises. Raises UserError.
        """
        require_functions(on_frame=on_frame)
        name, sampler, about = self._model(model)
        if not isinstance(sampler, DiffusionSampler):
            others = [other for other in self.models if other in DIFFUSION]
            fix = f"use model={others[0]!r}" if others else "no model here does"
            raise UserError(f"model {name!r} draws in one step and denoises nothing; {fix}")
        condition, keys, how = self._asked(name, sampler, about, labels, count, seed, places, steps, guidance, batch)
        made: list[Frame] = []
        total = len(sampler.times(how))

        def watch(t: int, x: Decoded, predicted: Decoded) -> None:
            frame = Frame(len(made) % total + 1, total, t, _images(x()), _images(predicted()))
            made.append(frame)
            if on_frame is not None:
                on_frame(frame)

        self._sampled(sampler, condition, keys, how, watch)
        rows = [made[first : first + total] for first in range(0, len(made), total)]
        return [_joined(frames) for frames in zip(*rows, strict=True)]

    def judge(
        self, pictures: Tensor | Image.Image | Sequence[Image.Image], labels: str | Sequence[str]
    ) -> list[list[Verdict]]:
        """Judges pictures by the experiment's evaluator: for each picture, a Verdict on each object asked for.

        `pictures`: Pillow images (another size is scaled) or a tensor (n, 3, s, s), uint8 or in [-1, 1]. `labels`: one
        text as in `draw` for all of them, or one for each picture. Raises UserError.
        """
        with _within_memory("judge fewer pictures at a time"), _turn, _in_one_line(), _environment(), exact_float32():
            return self._judge.verdicts(pictures, labels)

    def facts(self, model: str | None = None) -> Facts:
        """Returns what a model of `models` can do; the first one by default. Loads it. Raises UserError."""
        name, sampler, _ = self._model(model)
        return facts_of(name, sampler, self._context.config)

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self._context, Vocabulary(self.objects))

    def _model(self, model: str | None) -> tuple[str, Sampler, dict]:
        """Returns a model's name, its sampler, loaded at the first use, and the description in its export."""
        name = self.model if model is None else model
        if not isinstance(name, str) or name not in self._askable:
            raise UserError(f"model {name!r}: {self.name} has no such model; choose from {', '.join(self.models)}")
        with _within_memory(FREE), _turn, _in_one_line(), _environment():
            if name not in self._loaded:
                self._loaded[name] = MODELS[name].load(self._context)
            return name, *self._loaded[name]

    def _asked(
        self,
        model: str,
        sampler: Sampler,
        about: dict,
        labels: str,
        count: int,
        seed: int,
        places: Sequence[Place | None] | None,
        steps: int | None,
        guidance: float | None,
        batch: int,
    ) -> tuple[Condition, list[tuple], Eval]:
        """Checks what is asked. Returns conditions, keys and how to sample."""
        count, seed, batch = whole("count", count), whole("seed", seed, least=None), whole("batch", batch)
        if batch > LARGEST:
            raise UserError(f"batch {batch}: must be at most {LARGEST}")
        scale = None if guidance is None else guidance_scale(guidance)
        if model not in DIFFUSION and (steps is not None or guidance is not None):
            raise UserError(f"steps and guidance are for diffusion models, which {model} is not; leave them out")
        vocabulary = Vocabulary(about["objects"])
        with _in_one_line():
            objects, where = vocabulary.parse(with_places(labels, places, vocabulary))
        if any(where) and not sampler.takes_places:
            refuse_asked_places(labels, model)
        changes: dict[str, object] = {"batch": batch}
        if steps is not None:
            changes["steps"] = whole("steps", steps)
        if scale is not None:
            changes["guidance"] = scale
        how = self._context.config.eval.model_copy(update=changes)
        with _within_memory(FEWER):
            condition = Condition.of_lists([objects], len(vocabulary), [where]).repeat(count)
            return condition, [(seed, "sample", i) for i in range(count)], how

    def _sampled(
        self, sampler: Sampler, condition: Condition, keys: list[tuple], how: Eval, watch: Watch | None = None
    ) -> Tensor:
        with _within_memory(FEWER), _turn, exact_float32():
            if isinstance(sampler, DiffusionSampler):
                return sampler.sample(condition, keys, how, watch)
            return sampler.sample(condition, keys, how)


def load(
    experiment: str | os.PathLike[str] = "scenes",
    *settings: str,
    model: str | None = None,
    device: str | torch.device | None = None,
) -> Experiment:
    """Loads an experiment: a name in checkpoints/, the path of an experiment's folder, or a configuration file.

    `settings` replace values of its configuration: "eval.steps=20". `device`: auto (a GPU if there is one), cpu, cuda,
    cuda:1; without it the configuration's. `model` draws by default; without it the configuration's does. It is loaded
    now, other models and the judge at their first use. Raises UserError.
    """
    for words in settings:
        if not isinstance(words, str):
            raise UserError(f'setting {words!r}: give a text, such as "eval.steps=20"')
    with _within_memory(FREE), _in_one_line():
        config, file = configuration_of(experiment, settings)
        # torch.compile would start processes and leave settings behind
        config = derive(config, ["eval.compile=false", *([] if device is None else [f"device={device}"])])
        place = device_of(config.device)
        arguments = Namespace(config=str(file))
        context = Context(config, place, precision_of(config, place), arguments, time.perf_counter(), ExitStack())
        return Experiment(context, model)


@contextmanager
def _environment() -> Iterator[None]:
    """Undoes what importing torchvision and the codebooks' library adds to the environment."""
    before = set(os.environ)
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("TORCH") and name not in before]:
            del os.environ[name]


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Reports faults of the data, and what the system refuses, as UserErrors."""
    try:
        yield
    except DataError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise of_the_system(error) from None


@contextmanager
def _within_memory(fix: str) -> Iterator[None]:
    """Reports that memory ran out as a UserError that ends with `fix`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory ({oneline(error)[:100]}); {fix}") from None


def _images(pictures: Tensor) -> Pictures:
    """Converts (n, 3, s, s) in [-1, 1] to Pillow images, rounded as in a file of `make sample`."""
    return [image_of(picture) for picture in pictures.detach().float().cpu().add(1).div(2)]


def _joined(frames: Sequence[Frame]) -> Frame:
    """Joins the same step of several batches."""
    first = frames[0]
    x, predicted = ([picture for frame in frames for picture in getattr(frame, n)] for n in ("x", "predicted"))
    return Frame(first.step, first.steps, first.t, x, predicted)
