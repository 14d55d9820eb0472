"""The experiment as a whole: its data, its evaluation, and all sections together."""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from data.sizes import SIZE, Size
from models.choices import DIFFUSION, ModelName, SamplerName, Spacing
from stages.engine.schema.autoencoder import Vae
from stages.engine.schema.base import Model, Section
from stages.engine.schema.diffusion import Ddpm, Ldm, Onestep
from stages.engine.schema.gan import Gan
from stages.engine.schema.judges import Evaluator, Reader
from stages.engine.values import (
    Compiled,
    Folder,
    Ints,
    Models,
    Names,
    NonNegative,
    Pair,
    PlaceOnDisk,
    Positive,
    Seed,
    Share,
)

REPORTED = ("test", "new_test")  # the reports' files of label sets; drawn scenes have them too


class Data(Section):
    # a folder in the lab's layout, a pack, or a list of them, joined in order; null: the scenes of `make scenes`
    folder: Folder = None
    size: Size = SIZE  # pixels a side, to which pictures are scaled when they are packed; latents have an eighth
    validation_every: Positive = 20  # without a validation.json, every n-th scene is held out of training
    conditions: Names = REPORTED  # files of label sets, NAME.json: what a model is asked to draw, and scored on
    # of an LDM or a GAN on latents: float32 in memory, or bfloat16 in files in packs/; auto: in memory up to 2 GiB
    latents: Literal["auto", "memory", "pack"] = "auto"
    withhold: Share = 0.0  # share of the sets of two or more labels whose pictures are not trained on

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders or packs, none for the rendered scenes."""
        return self.folder if isinstance(self.folder, tuple) else (self.folder,) if self.folder else ()


class Render(Section):
    scenes: Positive = 6003
    objects: Annotated[int, Field(ge=1, le=6)] = 3  # most objects in a picture
    series: bool = True  # a picture for each object that is added, as in i-CLEVR; false: one picture a scene
    validation_scenes: Positive = 200  # held out of training
    size: Positive | None = None  # pixels a side, data.size or more; null: data.size
    samples: Positive = 4  # rays per pixel and lamp
    camera_distance: Annotated[float, Field(ge=8.5)] = 11.0  # a smaller one makes objects larger than i-CLEVR's
    seed: Seed = 0


class Eval(Section):
    seeds: Ints = (0, 1, 2, 3, 4)
    sampler: SamplerName = "ddim"  # ancestral: DDPM's, every timestep
    steps: Positive = 50  # of DDIM and DPM-Solver++
    spacing: Spacing = "trailing"  # of their timesteps
    eta: Share = 0.0  # of DDIM: 0 is deterministic, 1 as random as DDPM's sampler
    clip: Annotated[float, Field(gt=0)] | None = None  # bound on the ancestral sampler's x_0, in the units of x_0
    guidance: NonNegative = 1.0  # classifier-free; 1: none
    classifier_guidance: NonNegative = 0.0  # scale of the guide's gradient; 0: no classifier guidance
    places: Literal["chosen", "unknown"] = "chosen"  # places and turns not given: drawn, or left unknown
    apart: Share = 0.0  # smallest distance of objects in the layouts drawn, in sides of the picture; 0: as in training
    interval: Pair = (0.0, 1.0)  # range of t / T in which classifier-free guidance acts
    compile: Compiled = False  # torch.compile for the denoiser: pays off after some thousand network calls
    batch: Positive = 32  # pictures sampled at once; affects results, since it decides how sums are rounded


class Config(Section):
    name: str
    seed: Seed = 0
    root: PlaceOnDisk = "checkpoints"
    device: str = "auto"  # auto: cuda if available
    deterministic: bool = False  # on a GPU: only algorithms that repeat bit for bit; a CPU always does
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 autocast if the processor has it
    models: Models = ("ldm", "gan")  # what `make eval` trains and evaluates
    # model -> a report's (test, new_test) accuracy, shown beside ours
    reported: dict[ModelName, Pair] = Field(default_factory=dict)
    # stage -> the experiment whose export is reused: nothing is trained twice
    uses: dict[str, str] = Field(default_factory=dict)
    data: Data = Data()
    render: Render = Render()
    evaluator: Evaluator = Evaluator()
    reader: Reader = Reader()
    vae: Vae
    ldm: Ldm
    gan: Gan
    ddpm: Ddpm | None = None
    onestep: Onestep | None = None
    eval: Eval = Eval()

    @property
    def diffusion(self) -> str:
        """The diffusion model of `models`, the first of two; `ldm` where there is none."""
        return next((model for model in self.models if model in DIFFUSION), DIFFUSION[0])

    @property
    def drawer(self) -> str:
        """The model that `make sample` draws from: the diffusion model of `models`, or else the first of them."""
        return self.diffusion if self.diffusion in self.models else self.models[0]

    @property
    def needs_places(self) -> dict[str, str]:
        """The keys for which the configured models need places, and how to do without: {key: override}."""
        needs = {}
        if self.evaluator.cell_weight > 0 and self.evaluator.checkpoint is None:
            needs["evaluator.cell_weight"] = "evaluator.cell_weight=0.0"
        if self.needs_vae and self.vae.cell_weight > 0:
            needs["vae.cell_weight"] = "vae.cell_weight=0.0"
        for model in self.models:
            needs |= self.places_of(model)
        return needs

    @property
    def needs_turns(self) -> dict[str, str]:
        """The keys for which the configured models need turns, and how to do without, like `needs_places`."""
        return {on: off for model in self.models for on, off in self.turns_of(model).items()}

    def places_of(self, model: str) -> dict[str, str]:
        """Returns `needs_places` for one model, whether `models` names it or not."""
        return self._of_model(model, lambda section: section.needs_places)

    def turns_of(self, model: str) -> dict[str, str]:
        """Returns `needs_turns` for one model, whether `models` names it or not."""
        return self._of_model(model, lambda section: section.needs_turns)

    def _of_model(self, model: str, needs: Callable[[Model], dict[str, str]]) -> dict[str, str]:
        section: Model | None = getattr(self, model)
        found = {} if section is None else needs(section)
        return {f"{model}.{on}": f"{model}.{off}" for on, off in found.items()}

    def takes_places(self, model: str) -> bool:
        """Returns True if a model's own settings say that its network takes the objects' places."""
        section: Model | None = getattr(self, model)
        return section is not None and section.takes_places

    @property
    def needs_vae(self) -> bool:
        """True if one of `models` works on latents."""
        sections = (getattr(self, model) for model in self.models)
        return any(section is not None and section.on_latents for section in sections)
