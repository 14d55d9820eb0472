"""The section `gan`: generator and critic."""

from typing import Annotated, Literal

from pydantic import Field

from models.choices import LABELLED, AuxiliarySchedule, Body, CriticCondition, GeneratorCondition, Loss
from models.sizes import CELL
from stages.engine.schema.base import Model, Section
from stages.engine.values import Gammas, Natural, NonNegative, PictureDraws, Positive, Widths


class Generator(Section):
    # from one vector at 4x4, or from a map, as large as latents, of objects at their places
    entry: Literal["vector", "map"] = "vector"
    noise: Positive = 64
    object_noise: Natural = 6  # noise values per object, with entry=map
    channels: Widths = (512, 256, 128, 64)  # from 4x4 (a map: an eighth) to the full resolution
    label_width: Positive = 64
    condition: GeneratorCondition = "concatenation"  # with entry=map: modulation only


class Critic(Section):
    read: Literal["pooled", "places"] = "pooled"  # places: scores and labels are read at the objects' places
    channels: Widths = (64, 128, 256, 512)  # from the full resolution to 4x4 (read=places: an eighth)
    pool: Literal["flatten", "sum"] = "flatten"  # before the head; with read=places: sum only
    condition: CriticCondition = "projection"  # with read=places: neither concatenation nor contrast

    @property
    def has_label_loss(self) -> bool:
        """True if the critic has a loss on labels besides its score's."""
        return any(way in self.condition.split("+") for way in LABELLED)

    @property
    def contrasts(self) -> bool:
        """True if that loss chooses between the label sets of a batch."""
        return "contrast" in self.condition.split("+")


class Gan(Model):
    loss: Loss = "wgan-gp"
    body: Body = "residual"
    attention: bool = False  # self-attention at 8x8 in both networks; not with entry=map or read=places
    space: Literal["pixels", "latents"] = "pixels"
    stem: Literal[1, 2, 4, 8] = 1  # in pixel space: pixels a side of the squares that both networks work on
    generator: Generator = Generator()
    critic: Critic = Critic()
    critic_learning_rate: Annotated[float, Field(gt=0)] | None = None  # null: the generator's; all else is alike
    critic_steps: Positive = 5  # per generator step
    penalty: NonNegative = 10.0  # lambda of wgan-gp
    weight_clip: Annotated[float, Field(gt=0)] = 0.01  # of wgan: the critic's weights stay within +- this
    gamma: Gammas = (0.05, 0.005)  # of r3gan's penalties: from the first to the last step, along half a cosine
    penalty_share: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of the batch that the penalty is measured on
    auxiliary: NonNegative = 1.0  # weight of the label loss, if critic.condition has auxiliary or contrast
    layer_norms: bool = False  # log the gradient norm of every layer of the critic
    picture_draws: PictureDraws = "uniform"
    auxiliary_schedule: AuxiliarySchedule = "constant"  # of the generator's weight, linear in the step

    def side(self, size: int) -> int:
        """Returns the side length of what both networks work on, for pictures of `size`."""
        return size // (CELL if self.space == "latents" else self.stem)

    def levels(self, size: int) -> dict[str, tuple[int, int]]:
        """Returns the smallest map's side and how many widths are needed from there, for generator and critic."""
        cells = size // CELL
        sides = {
            "generator": cells if self.generator.entry == "map" else 4,
            "critic": cells if self.critic.read == "places" else 4,
        }
        return {key: (side, (self.side(size) // side).bit_length()) for key, side in sides.items()}

    @property
    def on_latents(self) -> bool:
        return self.space == "latents"

    @property
    def takes_places(self) -> bool:
        return self.generator.entry == "map" or self.critic.read == "places"

    @property
    def needs_places(self) -> dict[str, str]:
        needs = {"generator.entry=map": "generator.entry=vector"} if self.generator.entry == "map" else {}
        return needs | ({"critic.read=places": "critic.read=pooled"} if self.critic.read == "places" else {})
