"""Reads what a page asks for: one JSON object, with a bound on every value."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.labels import SPOT, DataError, Place, Vocabulary, on_one_spot
from stages.engine.errors import UserError

OBJECTS = 5  # in one picture
COUNT = 8  # pictures of one model
STEPS = 100  # sampling steps
GUIDANCE = 20.0
SEED = 2**31 - 1
BODY = 4096  # bytes of a request

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Refused(UserError):
    """A request that cannot be served: one line of words, and the HTTP status that says so."""

    def __init__(self, words: str, status: int = 400):
        super().__init__(words)
        self.status = status


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Item(_Strict):
    """An object by its name, with its place, or null where the program chooses one."""

    name: Annotated[str, Field(max_length=100)]
    place: tuple[Share, Share] | None = None


class Asked(_Strict):
    """A request to draw `count` pictures by each of `models`. Of null steps and guidance the experiment's are taken."""

    objects: Annotated[list[Item], Field(min_length=1, max_length=OBJECTS)]
    models: Annotated[list[Annotated[str, Field(max_length=40)]], Field(min_length=1, max_length=8)]
    count: Annotated[int, Field(ge=1, le=COUNT)] = 1
    seed: Annotated[int, Field(ge=0, le=SEED)] = 0
    steps: Annotated[int, Field(ge=1, le=STEPS)] | None = None
    guidance: Annotated[float, Field(ge=0, le=GUIDANCE, allow_inf_nan=False)] | None = None
    gif: bool = False  # whether the answer brings the denoising as a GIF too

    @property
    def names(self) -> list[str]:
        return [item.name for item in self.objects]

    @property
    def places(self) -> list[Place | None]:
        return [item.place for item in self.objects]


def read(body: bytes, names: Sequence[str], most_steps: Mapping[str, int | None]) -> Asked:
    """Reads a request about objects of these `names`. Raises Refused.

    `most_steps`: the models of the experiment, each with the most sampling steps it takes, None if one takes no number.
    """
    try:
        asked = Asked.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:60]
        raise Refused(f"{where}: {first['msg']}"[:300] if where else first["msg"][:300]) from None
    try:
        Vocabulary([*names]).indices(asked.names, "objects")
    except DataError as error:
        raise Refused(str(error)) from None
    if spot := on_one_spot(asked.places):
        one, other = (asked.names[i] for i in spot)
        raise Refused(f"{one!r} and {other!r} are too close; place them {SPOT:g} of the picture or more apart")
    for model in asked.models:
        if model not in most_steps:
            raise Refused(f"models: this experiment has no {model!r}; choose from {', '.join(most_steps)}")
        most = most_steps[model]
        if most is not None and (asked.steps or 0) > most:
            raise Refused(f"steps: {model} takes at most {most}")
    if len({*asked.models}) < len(asked.models):
        raise Refused("models: name each model once")
    return asked
