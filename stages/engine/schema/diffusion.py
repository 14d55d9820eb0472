"""The sections `ldm`, `ddpm` and `onestep`: diffusion, and what is distilled from it."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from models.choices import Distance, Prediction, Schedule
from models.sizes import heads_at
from stages.engine.schema.base import Model, Section, Training
from stages.engine.values import (
    Bell,
    Compiled,
    Layers,
    Natural,
    NonNegative,
    Part,
    PictureDraws,
    Positive,
    Share,
    Widths,
)


class Network(Section):
    """The cross-attention UNet."""

    channels: Positive = 96
    multipliers: Widths = (1, 2)
    blocks: Layers = 2  # residual blocks per level
    head_width: Positive | None = 32
    heads: Positive | None = None  # instead of head_width
    depth: Layers = 1  # transformer layers per block
    expansion: Natural = 2  # of the feed-forward part of a transformer layer; 0: no feed-forward
    context: Positive = 128  # width of the label tokens
    condition: Literal["tokens", "vector"] = "tokens"  # a token per label, or one token for the whole set
    order: bool = False  # a token also says its object's position in the list
    places: bool = False  # a token also says where its object is, and a map of the places enters the first layer
    turns: bool = False  # token and map also say how an object is turned, from turns.json; needs places
    pooled: bool = False  # the labels are also added to the time embedding
    dropout: Part = 0.0
    self_condition: bool = False  # each prediction of x_0 is an input of the next

    def heads_at(self, width: int) -> int:
        """Returns the heads of a layer of `width`. One of heads and head_width is given (rules.py checks it)."""
        return heads_at(width, self.heads, self.head_width)

    @property
    def wants_layouts(self) -> bool:
        """True if the order of the objects or their places are an input, not only the set of labels."""
        return self.order or self.places


class Denoising(Model):
    """Keys that latent and pixel diffusion share."""

    prediction: Prediction = "v"
    schedule: Schedule = "cosine"
    zero_terminal_snr: bool = False  # rescale the schedule to end in pure noise; needs min_snr and log_snr null
    # linear: fewer timesteps have larger betas, so that it ends equally near to noise
    timesteps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    min_snr: Annotated[float, Field(gt=0)] | None = 5.0  # null: unweighted
    log_snr: Bell | None = None  # weights v's error by a bell curve over log SNR
    bound: bool = False  # the variational bound's weights; like log_snr, it overrides min_snr
    timestep_draws: Literal["uniform", "weighted"] = "uniform"  # weighted: as often as a timestep's loss weighs
    picture_draws: PictureDraws = "uniform"
    label_dropout: Part = 0.1  # share of rows trained without their condition, for guidance
    place_dropout: Part = 0.2  # share of rows trained without their places and turns, if the network reads places
    # It learns only from pictures whose objects are at least this far apart, in sides of the picture; 0: from all.
    # Pictures of one object stay, those with an unknown place do not. For networks that are told no places
    apart: Share = 0.0
    compile: Compiled = False  # torch.compile: pays off in long trainings; needs a compiler

    def _needs(self, key: str, takes_places: bool) -> dict[str, str]:
        """Returns what needs the objects' places, and how to do without. `key`: what gives the network places."""
        needs = {f"{key}=true": f"{key}=false"} if takes_places else {}
        return needs | self.needs_turns | ({f"apart={self.apart:g}": "apart=0.0"} if self.apart else {})


class Ldm(Denoising):
    network: Network = Network()

    @property
    def on_latents(self) -> bool:
        return True

    @property
    def takes_places(self) -> bool:
        return self.network.places

    @property
    def takes_estimate(self) -> str | None:
        """The key that gives the network its last prediction, if it is set."""
        return "network.self_condition" if self.network.self_condition else None

    @property
    def takes_turns(self) -> bool:
        return self.network.turns

    @property
    def needs_places(self) -> dict[str, str]:
        return self._needs("network.places", self.takes_places)

    @property
    def needs_turns(self) -> dict[str, str]:
        return {"network.turns=true": "network.turns=false"} if self.takes_turns else {}

    @property
    def wants_layouts(self) -> bool:
        """True if it learns from the objects' order or places, not only from the set of labels."""
        return self.network.wants_layouts or self.apart > 0


class Ddpm(Denoising):
    """Pixel diffusion by the multiply-add U-Net, or on 8x8 patches by the cross-attention UNet."""

    network: Literal["multiply-add", "patches"] = "multiply-add"
    width: Annotated[int, Field(gt=0, multiple_of=8)] = 256  # of multiply-add, a multiple of eight
    paths: Literal["up", "up+down"] = "up+down"  # of multiply-add: where the conditions enter
    stem: Literal[1, 2, 4, 8] = 1  # of multiply-add: pixels a side of the squares that it works on; 1: on pixels
    places: bool = False  # of multiply-add: a map of the places enters the first layer
    bottleneck: Positive = 64  # of patches: channels through which a patch's 192 values enter
    unet: Network = Network()  # of patches
    plateau_factor: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the learning rate when no accuracy has risen ...
    plateau_patience: Positive = 5  # ... for that many previews

    NEUTRAL: ClassVar = Training.NEUTRAL - {"preview_every"}  # previews drive the plateau

    @property
    def takes_places(self) -> bool:
        return self.unet.places if self.network == "patches" else self.places

    @property
    def takes_estimate(self) -> str | None:
        """The key that gives the network its last prediction, if it is set."""
        return "unet.self_condition" if self.network == "patches" and self.unet.self_condition else None

    @property
    def takes_turns(self) -> bool:
        return self.network == "patches" and self.unet.turns

    @property
    def needs_turns(self) -> dict[str, str]:
        return {"unet.turns=true": "unet.turns=false"} if self.takes_turns else {}

    @property
    def needs_places(self) -> dict[str, str]:
        return self._needs("unet.places" if self.network == "patches" else "places", self.takes_places)

    @property
    def wants_layouts(self) -> bool:
        """True if it learns from the objects' order or places, not only from the set of labels."""
        return (self.unet.wants_layouts if self.network == "patches" else self.places) or self.apart > 0


class FeatureCritic(Section):
    weight: NonNegative = 0.1  # of the hinge loss on the teacher's features, added to the distance; 0: none
    channels: Positive = 64  # of the head on each map of features
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    noise: Annotated[float, Field(gt=0, le=1)] = 0.5  # latents are noised to a t below this share of T


class Onestep(Model):
    """A generator of one network call, distilled from the LDM. That it takes places is the LDM's setting."""

    pairs: Positive = 10_000  # of noise and what the LDM makes of it, as `eval` says; made once
    chosen_places: Share = 0.5  # share of the pairs whose places are drawn as at sampling, not the training picture's
    picture_draws: PictureDraws = "uniform"  # whose objects the pairs have
    distance: Distance = "l2"  # from the LDM's latents
    critic: FeatureCritic = FeatureCritic()

    @property
    def on_latents(self) -> bool:
        return True
