"""Defines the configuration's typed sections, one class per section of the YAML file. Defaults suit most runs."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from data.sizes import SIZE, Size
from models.choices import (
    DIFFUSION,
    LABELLED,
    AuxiliarySchedule,
    Backbone,
    Body,
    CriticCondition,
    Distance,
    GeneratorCondition,
    Loss,
    ModelName,
    Prediction,
    QuantizerName,
    SamplerName,
    Schedule,
    Spacing,
)
from models.sizes import CELL
from stages.engine.values import (
    Bell,
    Betas,
    Compiled,
    File,
    Folder,
    Gammas,
    Ints,
    Layers,
    Models,
    Names,
    Natural,
    NonNegative,
    Pair,
    Part,
    PictureDraws,
    PlaceOnDisk,
    Positive,
    Seed,
    Share,
    Widths,
)


class Section(BaseModel):
    """The base of all sections: unknown keys and wrong types are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


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


class Evaluator(Training):
    checkpoint: File = None  # the lab's checkpoint.pth; null: one is trained here
    low_resolution: Share = 0.5  # share of each batch downscaled to half its side and back, as for the lab's
    cell_weight: NonNegative = 0.0  # weight of a second loss: what each cell of its middle features shows, by places
    steps: Positive = 1000
    batch: Positive = 128
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    decay: Literal["constant", "linear", "cosine"] = "cosine"


class Reader(Training):
    low_resolution: Share = 0.25  # share of each batch downscaled to half its side and back, as for the evaluator
    steps: Positive = 600
    batch: Positive = 32
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.98


class Perceptual(Section):
    weight: NonNegative = 0.0
    network: Backbone = "vgg"
    weights: File = None  # the backbone's file; null: torch's hub cache


class Discriminator(Section):  # it has Adam with betas .5 and .9, and of `vae` only `clip`
    weight: NonNegative = 0.0  # 0: none
    adaptive: bool = False  # scale by the ratio of gradient norms at the last layer, clamped
    adaptive_limit: Annotated[float, Field(gt=0)] = 1.0
    start: Natural = 0  # the step from which it is used
    channels: Positive = 64
    layers: Annotated[int, Field(ge=1, le=4)] = (
        3  # all of stride 2 except the last: 64x64 has room for four, 32x32 for three
    )
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4


class Codebook(Section):
    codes: Annotated[int, Field(ge=2)] = 1024
    decay: Part = 0.99
    commitment: NonNegative = 0.25
    dead_below: NonNegative = 1.0  # codes with a smaller average count per batch are replaced
    rotation_trick: bool = False
    init: Literal["kmeans", "uniform"] = "kmeans"  # from the latents of 16 batches, or at random
    start: Natural = 0  # until this step the autoencoder learns without quantisation, so that k-means finds structure


class Fsq(Section):
    start: Natural = 0  # until this step nothing is quantised: latents are small at first and would all round to 0
    levels: Annotated[int, Field(ge=3)] = 7  # of each latent channel; odd, so that 0 is one of them


class Residual(Section):
    codes: Annotated[int, Field(ge=2)] = 1024  # of each codebook
    quantizers: Layers = 2  # codebooks
    decay: Part = 0.99
    commitment: NonNegative = 0.25
    dead_below: NonNegative = 1.0


class Vae(Training):
    channels: Widths = (64, 96, 128)  # at the three resolutions, finest first
    stem: Literal[1, 2] = 2  # 2: unshuffle 2x2 pixels into channels before the first convolution
    stem_channels: Positive | None = None  # null: as channels[0]
    blocks: Layers = 1  # residual blocks at each resolution
    middle_blocks: Annotated[int, Field(ge=0, le=100)] = 1  # at the coarsest resolution
    norm: Literal["group", "none"] = "group"
    latent_channels: Annotated[int, Field(gt=0, le=1024)] = 6
    quantizer: QuantizerName = "codebook"
    codebook: Codebook = Codebook()
    fsq: Fsq = Fsq()
    residual: Residual = Residual()
    decodes: Literal["codes", "latents"] = "codes"  # what the decoder gets from a sampler's latents
    decoder_noise: NonNegative = 0.0  # decoder input noise in training: deviation |N(0, this)| of the latents'
    unquantized: Share = 0.0  # share of rows whose latents the decoder learns from unquantised
    cell_weight: NonNegative = 0.0  # weight of a linear classifier's loss on what each cell of the latents shows
    label_weight: NonNegative = 0.0  # weight of a linear classifier's loss on the latents: they tell objects apart
    windows_until: Natural = 0  # until this step it learns from a quarter of each picture, around an object
    foreground: NonNegative = 0.0  # extra weight of pixels that differ from the median picture
    edges: NonNegative = 0.0  # weight of a second loss: errors of the differences between neighbouring pixels
    perceptual: Perceptual = Perceptual()
    discriminator: Discriminator = Discriminator()

    @property
    def quantized_from(self) -> int:
        """The step from which latents are quantised in training."""
        return {"codebook": self.codebook.start, "fsq": self.fsq.start}.get(self.quantizer, 0)


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
    pooled: bool = False  # the labels are also added to the time embedding
    dropout: Part = 0.0
    self_condition: bool = False  # each prediction of x_0 is an input of the next

    def heads_at(self, width: int) -> int:
        """Returns the heads of a layer of `width`. One of heads and head_width is given (config.py checks it)."""
        if self.heads is not None:
            return self.heads
        assert self.head_width is not None
        return max(1, width // self.head_width)

    @property
    def wants_layouts(self) -> bool:
        """True if the order of the objects or their places are an input, not only the set of labels."""
        return self.order or self.places


class Denoising(Training):
    """Keys that latent and pixel diffusion share."""

    prediction: Prediction = "v"
    schedule: Schedule = "cosine"
    zero_terminal_snr: bool = False  # rescale the schedule to end in pure noise; needs min_snr and log_snr null
    # linear: fewer timesteps have larger betas, so that it ends equally near to noise
    timesteps: Annotated[int, Field(gt=0, le=100_000)] = 1000
    min_snr: Annotated[float, Field(gt=0)] | None = 5.0  # null: unweighted
    log_snr: Bell | None = None  # weights v's error by a bell curve over log SNR
    bound: bool = False  # the variational bound's weights; like log_snr, it overrides min_snr
    timestep_draws: Literal["uniform", "weighted"] = "uniform"  # weighted: as often as a timestep's loss weighs
    picture_draws: PictureDraws = "uniform"
    label_dropout: Part = 0.1  # share of rows trained without their condition, for guidance
    place_dropout: Part = 0.2  # share of rows trained without their places, if the network reads places
    apart: Share = 0.0  # it learns from pictures whose objects are this far apart, in sides of the picture; 0: all
    compile: Compiled = False  # torch.compile: pays off in long trainings; needs a compiler

    def _needs(self, key: str, takes_places: bool) -> dict[str, str]:
        """Returns what needs the objects' places, and how to do without. `key`: of the network's input of places."""
        needs = {f"{key}=true": f"{key}=false"} if takes_places else {}
        return needs | ({f"apart={self.apart:g}": "apart=0.0"} if self.apart else {})


class Ldm(Denoising):
    network: Network = Network()

    on_latents: ClassVar = True

    @property
    def takes_places(self) -> bool:
        """True if the network takes the objects' places."""
        return self.network.places

    @property
    def needs_places(self) -> dict[str, str]:
        """The settings that need the objects' places, and how to do without them: {override: override}."""
        return self._needs("network.places", self.takes_places)

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

    on_latents: ClassVar = False

    @property
    def takes_places(self) -> bool:
        """True if the network takes the objects' places."""
        return self.unet.places if self.network == "patches" else self.places

    @property
    def needs_places(self) -> dict[str, str]:
        """The settings that need the objects' places, and how to do without them: {override: override}."""
        return self._needs("unet.places" if self.network == "patches" else "places", self.takes_places)

    @property
    def wants_layouts(self) -> bool:
        """True if it learns from the objects' order or places, not only from the set of labels."""
        return (self.unet.wants_layouts if self.network == "patches" else self.places) or self.apart > 0


class Generator(Section):
    entry: Literal["vector", "map"] = (
        "vector"  # from one vector at 4x4, or a map, as latents, of objects at their places
    )
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
        """True if the critic has a loss on labels beside its score's."""
        return any(way in self.condition.split("+") for way in LABELLED)

    @property
    def contrasts(self) -> bool:
        """True if that loss chooses between the label sets of a batch."""
        return "contrast" in self.condition.split("+")


class Gan(Training):
    loss: Loss = "wgan-gp"
    body: Body = "residual"
    attention: bool = False  # self-attention at 8x8 in both networks; not with entry=map or read=places
    space: Literal["pixels", "latents"] = "pixels"
    stem: Literal[1, 2, 4] = 1  # in pixel space: pixels a side of the squares that both networks work on
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
        """True if one of the two networks takes the objects' places."""
        return self.generator.entry == "map" or self.critic.read == "places"

    @property
    def needs_places(self) -> dict[str, str]:
        """The settings that need the objects' places, and how to do without them: {override: override}."""
        needs = {"generator.entry=map": "generator.entry=vector"} if self.generator.entry == "map" else {}
        return needs | ({"critic.read=places": "critic.read=pooled"} if self.critic.read == "places" else {})


class FeatureCritic(Section):
    weight: NonNegative = 0.1  # of the hinge loss on the teacher's features, beside the distance; 0: none
    channels: Positive = 64  # of the head on each map of features
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    noise: Annotated[float, Field(gt=0, le=1)] = 0.5  # latents are noised to a t below this share of T


class Onestep(Training):
    """A generator of one network call, distilled from the LDM."""

    pairs: Positive = 10_000  # of noise and what the LDM makes of it, as `eval` says; made once
    chosen_places: Share = 0.5  # share of the pairs whose places are drawn as at sampling, not the training picture's
    picture_draws: PictureDraws = "uniform"  # whose objects the pairs have
    distance: Distance = "l2"  # from the LDM's latents
    critic: FeatureCritic = FeatureCritic()

    on_latents: ClassVar = True

    @property
    def takes_places(self) -> bool:
        """False: what the LDM takes, it takes too, but that is the LDM's setting."""
        return False

    @property
    def needs_places(self) -> dict[str, str]:
        """The settings that need the objects' places: none but the LDM's."""
        return {}


class Eval(Section):
    seeds: Ints = (0, 1, 2, 3, 4)
    sampler: SamplerName = "ddim"  # ancestral: DDPM's, every timestep
    steps: Positive = 50  # of DDIM and DPM-Solver++
    spacing: Spacing = "trailing"  # of their timesteps
    eta: Share = 0.0  # of DDIM: 0 is deterministic, 1 as random as DDPM's sampler
    clip: Annotated[float, Field(gt=0)] | None = None  # bound on the ancestral sampler's x_0, in the units of x_0
    guidance: NonNegative = 1.0  # classifier-free; 1: none
    classifier_guidance: NonNegative = 0.0  # scale of the guide's gradient; 0: no classifier guidance
    places: Literal["chosen", "unknown"] = "chosen"  # places not given: drawn from training layouts, or left unknown
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
    reported: dict[ModelName, Pair] = {}  # model -> a report's (test, new_test) accuracy, shown beside ours
    uses: dict[str, str] = {}  # stage -> the experiment whose export is reused: nothing is trained twice
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

    def places_of(self, model: str) -> dict[str, str]:
        """Returns `needs_places` for one model, whether `models` names it or not."""
        section = getattr(self, model)
        return (
            {} if section is None else {f"{model}.{on}": f"{model}.{off}" for on, off in section.needs_places.items()}
        )

    def takes_places(self, model: str) -> bool:
        """Returns True if a model's own settings say that its network takes the objects' places."""
        section = getattr(self, model)
        return section is not None and section.takes_places

    @property
    def needs_vae(self) -> bool:
        """True if one of `models` works on latents."""
        sections = (getattr(self, model) for model in self.models)
        return any(section is not None and section.on_latents for section in sections)


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
