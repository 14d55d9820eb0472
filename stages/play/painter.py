"""Turns a request into pictures through the library, and tells each step of it."""

import base64
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.labels import COLOURS, SHAPES, as_text
from data.render import RGB
from models.layouts import evenly
from stages.play.asked import COUNT, GUIDANCE, OBJECTS, SEED, STEPS, Asked, read
from stages.play.server import Stopped, Tell
from stages.use.find import REPOSITORY, SHIPPED
from stages.use.library import Experiment, Frame
from stages.use.output import encoded, sheets

SHOWN = 24  # steps of a denoising that are shown at most


def as_url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def look(name: str) -> dict[str, str] | None:
    """Returns how the page draws an object of CLEVR's, its shape and colour, or None for any other name."""
    colour, _, shape = name.partition(" ")
    if colour not in COLOURS or shape not in SHAPES:
        return None
    return {"shape": shape, "colour": "#{:02x}{:02x}{:02x}".format(*RGB[colour])}


def command_of(config: str, overrides: Sequence[str]) -> str:
    """Returns the beginning of the `make sample` command for this configuration file and overrides.

    It leaves out CONFIG for the shipped weights, because Make would then train first; but not if name or root is
    changed too, because Make would then take another configuration.
    """
    words = ["make sample"]
    shipped = Path(config).resolve() == (REPOSITORY / SHIPPED / "config.yaml").resolve()
    if not shipped or any(one.startswith(("name=", "root=")) for one in overrides):
        words.append(f"CONFIG={shlex.quote(config)}")
    if overrides:
        words.append(f"SET={shlex.quote(shlex.join(overrides))}")
    return " ".join(words).replace("$", "$$")  # of Make


class LibraryPainter:
    """Draws with the models of an experiment, and has its judge look at the pictures. For one thread at a time.

    `command`: how `make sample` begins for this experiment.
    """

    def __init__(self, experiment: Experiment, command: str = "make sample"):
        self.experiment = experiment
        experiment.judge([], experiment.objects[0])  # loads it: without a judge nothing is served
        self.models = {model: experiment.facts(model) for model in experiment.models}
        self.about = {
            "name": experiment.name,
            "size": experiment.size,
            "command": command,
            "objects": [{"name": name, **(look(name) or {})} for name in experiment.objects],
            "models": [self._described(model) for model in experiment.models],
            "limits": {"objects": OBJECTS, "count": COUNT, "steps": STEPS, "guidance": GUIDANCE, "seed": SEED},
        }

    def _described(self, model: str) -> dict[str, Any]:
        facts = self.models[model]
        steps = {"steps": self._steps(model), "most_steps": facts.most_steps} if facts.most_steps else {}
        return {
            "name": model,
            "title": facts.title,
            "places": facts.takes_places,
            "guidance": facts.guidance,
            **steps,
        }

    def _steps(self, model: str, asked: int | None = None) -> int | None:
        """Returns the sampling steps to ask a model for: those wanted or its own, but None if their number is fixed."""
        facts = self.models[model]
        return (asked or min(facts.steps or 1, STEPS)) if facts.most_steps else None

    def read(self, body: bytes) -> Asked:
        return read(body, self.experiment.objects, {model: facts.most_steps for model, facts in self.models.items()})

    def warm_up(self) -> None:
        """Draws once by each model and judges it: the first drawing takes longer than the next ones."""
        for model in self.experiment.models:
            steps = self._steps(model, 1)
            pictures = self.experiment.draw(self.experiment.objects[0], 1, model=model, steps=steps, batch=1)
            self.experiment.judge(pictures, self.experiment.objects[0])

    def draw(self, asked: Asked, tell: Tell, stop: Callable[[], bool]) -> None:
        """Tells {"event": "step"} for each step shown and {"event": "done"} for each model (docs/play.md)."""
        for model in asked.models:
            if stop():
                raise Stopped
            began = time.perf_counter()
            frames = self._frames(asked, model, tell, stop)
            took = time.perf_counter() - began
            pictures = frames[-1].x
            verdicts = [
                [vars(v) for v in of_one] for of_one in self.experiment.judge(pictures, self._labels(asked, model))
            ]
            event = {"event": "done", "model": model, "seconds": round(took, 3), "verdicts": verdicts}
            event["pictures"] = [as_url("png", encoded(".png", [picture])) for picture in pictures]
            if asked.gif and len(frames) > 1:
                event["gif"] = as_url("gif", encoded(".gif", sheets(frames)))
            tell(event)

    def _labels(self, asked: Asked, model: str) -> str:
        """Writes the objects as the library reads them, with their places for a model that takes places."""
        places = asked.places if self.models[model].takes_places else [None] * len(asked.objects)
        return as_text(asked.names, places)

    def _frames(self, asked: Asked, model: str, tell: Tell, stop: Callable[[], bool]) -> list[Frame]:
        """Draws by one model and tells its steps. Returns all of them; a model without steps has one."""
        labels, batch = self._labels(asked, model), asked.count
        facts = self.models[model]
        if not facts.steps:
            pictures = self.experiment.draw(labels, asked.count, asked.seed, model=model, batch=batch)
            return [Frame(1, 1, 0, pictures, pictures)]

        def on_frame(frame: Frame) -> None:
            if stop():
                raise Stopped
            shown = evenly(frame.steps, SHOWN).add(1).tolist()
            if frame.step in shown:
                views = {"pictures": frame.predicted, "noisy": frame.x}
                urls = {name: [as_url("jpeg", encoded(".jpg", [one])) for one in view] for name, view in views.items()}
                tell({"event": "step", "model": model, "step": frame.step, "of": frame.steps, **urls})

        guidance = asked.guidance if facts.guidance is not None else None
        return self.experiment.denoising(
            labels, asked.count, asked.seed, None, self._steps(model, asked.steps), guidance, on_frame, model, batch
        )
