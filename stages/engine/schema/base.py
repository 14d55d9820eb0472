"""The base of all sections, and the keys that everything that is trained has."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from stages.engine.values import Betas, Natural, NonNegative, Positive


class Section(BaseModel):
    """The base of all sections: unknown keys and wrong types are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Training(Section):
    """Keys that every trained stage has. `batch` counts all processes together."""

    steps: Positive
    batch: Positive
    # parts of each process's rows, one after the other: less memory, and the same step up to rounding. Batch norms (of
    # evaluator, reader, multiply-add and gan.generator.condition=batch-norm) see one part, and average n times a step
    accumulate: Positive = 1
    learning_rate: Annotated[float, Field(gt=0)]
    optimizer: Literal["adam", "muon"] = "adam"  # muon: the hidden layers' weights by orthogonalised momentum
    betas: Betas = (0.9, 0.999)
    weight_decay: NonNegative = 0.0
    warmup: Natural = 0  # steps of linear warm-up
    decay: Literal["constant", "linear", "cosine"] = "constant"
    clip: Annotated[float, Field(gt=0)] | None = None  # largest norm of the gradient, a critic's too
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    log_every: Positive = 50
    preview_every: Positive = 500
    checkpoint_every: Positive = 500
    keep: Annotated[int, Field(ge=2)] = 2  # checkpoints kept: the newest, and older ones in case it is damaged

    # Keys that may change when a run is resumed: they do not affect what is learned.
    NEUTRAL: ClassVar = frozenset({"log_every", "preview_every", "checkpoint_every", "keep"})


class Model(Training):
    """The base of all models' sections: what the program asks of them besides their keys."""

    @property
    def on_latents(self) -> bool:
        """True if the model works on the autoencoder's latents."""
        return False

    @property
    def takes_places(self) -> bool:
        """True if one of its networks takes the objects' places."""
        return False

    @property
    def takes_turns(self) -> bool:
        """True if its network is told how objects are turned."""
        return False

    @property
    def needs_places(self) -> dict[str, str]:
        """The settings that need the objects' places, and how to do without them: {override: override}."""
        return {}

    @property
    def needs_turns(self) -> dict[str, str]:
        """The settings that need to know how objects are turned, and how to do without, like `needs_places`."""
        return {}


def flatten(section: BaseModel | dict, prefix: str = "") -> dict[str, object]:
    """Returns a section as {dotted key: value}, without its neutral keys."""
    neutral: frozenset[str] = getattr(section, "NEUTRAL", frozenset())
    content = section.model_dump(mode="json") if isinstance(section, BaseModel) else section
    flat: dict[str, object] = {}
    for key, value in content.items():
        if key in neutral:
            continue
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
