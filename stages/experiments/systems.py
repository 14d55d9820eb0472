"""The reports' systems and choices as data: the rows of `make reproduce` and the groups of `make ablations`."""

from collections.abc import Iterable
from dataclasses import dataclass

from models.choices import (
    BODIES,
    CRITIC_CONDITIONS,
    GENERATOR_CONDITIONS,
    LOSSES,
    PREDICTIONS,
    SCHEDULES,
    SPACINGS,
)
from stages.engine.schema import REPORTED

OF_X0 = [p for p in PREDICTIONS if p != "mean"]  # x_0 of a mean is ill-conditioned: it needs the ancestral sampler
MULTIPLY_ADD, SMALL = "configs/ddpm-multiply-add.yaml", "configs/ddpm-small.yaml"  # the second: for two cores
# model -> the configuration whose section of it an experiment without one borrows
LENT = {"ddpm": MULTIPLY_ADD, "onestep": "configs/onestep.yaml"}
TEACHERS = {"onestep": "ldm"}  # a model that is distilled -> the row whose model it learns from


def unweighted(model: str) -> tuple[str, str]:
    """Returns overrides that weight every timestep's error equally."""
    return f"{model}.min_snr=null", f"{model}.log_snr=null"


SIMPLE = unweighted("ldm")


def told(order: bool, places: bool) -> tuple[str, ...]:
    """Returns overrides that tell the LDM the objects' order and places, or not; always with one token per object.

    Without places it is not told how objects are turned either.
    """
    said = f"ldm.network.order={str(order).lower()}", f"ldm.network.places={str(places).lower()}"
    return "ldm.network.condition=tokens", *said, *(() if places else ("ldm.network.turns=false",))


def paths(where: str) -> tuple[str, str]:
    """Returns overrides that set where conditions enter the pixel DDPM; on patches it has no such paths."""
    return "ddpm.network=multiply-add", f"ddpm.paths={where}"


# how much of a condition the LDM is told
TOLD = {"the set": told(False, False), "order": told(True, False), "order and places": told(True, True)}
# group -> the model, the values to train, and the values that only change sampling
GROUPS: dict[str, tuple[str, dict[str, list[str]], dict[str, list[str]]]] = {
    "told": ("ldm", {name: [*changes] for name, changes in TOLD.items()}, {}),
    "conditions": ("ddpm", {p.replace("+", " + "): [*paths(p)] for p in ("up", "up+down")}, {}),
    "schedule": ("ldm", {s: [f"ldm.schedule={s}"] for s in SCHEDULES}, {}),
    "prediction": (
        "ldm",
        {p: [f"ldm.prediction={p}", *SIMPLE] for p in OF_X0}
        | {"mean": ["ldm.prediction=mean", *SIMPLE, "eval.sampler=ancestral"]}
        | {"noise, bound": ["ldm.prediction=noise", "ldm.bound=true", "ldm.log_snr=null"]},
        {},
    ),
    "weights": (
        "ldm",
        {
            "none": [*SIMPLE],
            "min-SNR 5": ["ldm.min_snr=5.0", "ldm.log_snr=null"],
            "log SNR, -1 ± 2": ["ldm.log_snr=[-1.0,2.0]"],
        },
        {},
    ),
    "guidance": ("ldm", {"": []}, {f"{g:g}": [f"eval.guidance={g}"] for g in (1.0, 2.0, 3.0, 4.0, 6.0)}),
}


GUIDED = "eval.classifier_guidance=2.0"
PATCHES = "configs/ddpm-patches.yaml"
COSINE = ("ddpm.schedule=beta-cosine", "ddpm.timesteps=500")


@dataclass(frozen=True)
class System:
    """Holds a row: its words, the model trained, what differs from the experiment, the report's (test, new_test).

    `report`: which of the reports has it. `budget`: that report's training. `tried`: what was tried where a row is
    short of it. `recipe`: the configuration from which this row takes the model's section, sampler,
    steps and guidance instead of the experiment's. An experiment without a section for the model borrows that of LENT.
    `longer`: how many times as many steps as the section says it is trained.
    """

    words: str
    model: str
    changes: tuple[str, ...] = ()
    reported: tuple[float, float] | None = None
    budget: str | None = None
    recipe: str | None = None
    report: int | None = None
    tried: str = ""
    longer: float = 1.0

    def reported_on(self, sets: Iterable[str]) -> dict[str, float]:
        """Returns the report's accuracy by file of label sets, of those in `sets` that the report has."""
        pair = dict(zip(REPORTED, self.reported or (), strict=False))
        return {name: pair[name] for name in sets if name in pair}


# GANs that are told the label set only, as in the reports
POOLED = ("gan.generator.entry=vector", "gan.critic.read=pooled")
CONSTANT = "gan.auxiliary_schedule=constant"  # a schedule needs the auxiliary head, which not every critic has
# GANs on a map of places, and what these need
MAP = ("gan.generator.entry=map", "gan.generator.condition=modulation", "gan.attention=false")
READ = (
    *("gan.critic.read=places", "gan.critic.condition=projection+auxiliary"),
    *("gan.critic.pool=sum", "gan.attention=false"),
)


def _choices(model: str, key: str, values: Iterable[str], words: str, *more: str) -> dict[str, System]:
    """Returns a row for each value of a key; `more` is changed in all of them."""
    short = key.replace(".", "-").replace("_", "-")
    return {f"{model}-{short}-{v}": System(f"{words}: {v}", model, (f"{model}.{key}={v}", *more)) for v in values}


def _pixels(words: str, *changes: str) -> System:
    return System(f"pixel DDPM, {words}", "ddpm", changes)


NARROW = "80 of the third report's 256 channels, on squares of 4x4 pixels"


def _third(words: str, where: str, reported: tuple[float, float]) -> System:
    """Returns a row of the third report, by the network that two cores can train."""
    budget = "267,328 steps of 32, width 256"
    tried = "Trainings of other seeds differ by as much, see the rows of seeds 1 and 2"
    return System(f"{words}; {NARROW}", "ddpm", paths(where), reported, budget, recipe=SMALL, report=3, tried=tried)


def _again(words: str, changes: tuple[str, ...]) -> dict[int, System]:
    """Returns the same row from two more training seeds, which an experiment of seed 0 lacks."""
    return {
        n: System(f"{words}, training seed {n}; {NARROW}", "ddpm", (*changes, f"seed={n}"), recipe=SMALL, report=3)
        for n in (1, 2)
    }


# the first report's accuracy on test and new_test, and its budget
FIRST_LDM = (0.819, 0.821), "534,656 steps of 32"
FIRST_GAN = (0.527, 0.678), "26,733 steps, 5 of the critic each, of 64"


HALF = "half of the first report's widths in the generator, a quarter to a half in the critic, on squares of 4x4 pixels"


def _told_the_set(words: str, *more: str) -> System:
    """Returns a row of an LDM that has to guess where objects stand.

    That takes a longer training, and noise at each step of the sampling, which mends a bad guess.
    """
    told = (*TOLD["the set"], "ldm.ema=0.999", "eval.steps=50", "eval.eta=1.0", "eval.interval=[0.2,0.9]")
    words = f"latent diffusion, told the label set alone, {words}"
    return System(words, "ldm", (*told, *more), *FIRST_LDM, report=1, longer=3)


SYSTEMS: dict[str, System] = {
    "ldm": System("latent diffusion", "ldm", (), *FIRST_LDM, report=1),
    "ldm-guided": System(
        "latent diffusion, classifier guidance through the decoder",
        "ldm",
        (GUIDED,),
        (0.75, 0.78),
        FIRST_LDM[1],
        report=1,
    ),
    "ldm-told-the-set": _told_the_set("with noise at each step"),
    "ldm-told-the-set-apart": _told_the_set(
        "noise at each step, trained on pictures whose objects are apart", "ldm.apart=0.2"
    ),
    "gan": System("WGAN-GP", "gan", (), *FIRST_GAN, report=1),
    "gan-pixels": System(
        f"WGAN-GP on pixels, told the label set alone, its critic also contrasts label sets; {HALF}",
        "gan",
        (),
        *FIRST_GAN,
        recipe="configs/gan-small.yaml",
        report=1,
    ),
    "gan-projection": System(
        "WGAN-GP on pixels in the report's form, told the label set alone; an eighth to a half of the report's "
        "widths, on squares of 8x8 pixels",
        "gan",
        (),
        *FIRST_GAN,
        recipe="configs/gan-projection-small.yaml",
        report=1,
        tried="More steps: it still rises, by about .06 a doubling",
    ),
    "gan-auxiliary": System(
        f"auxiliary-classifier WGAN-GP, told the label set alone; {HALF}",
        "gan",
        (),
        (0.972, 0.845),
        budget="not stated",
        recipe="configs/gan-auxiliary-small.yaml",
        report=2,
        tried="On latents its second head learns the training pictures by heart sooner",
    ),
    "ddpm-multiply-add": _third("pixel DDPM, multiply-add", where="up+down", reported=(0.653, 0.726)),
    "ddpm-up": _third("pixel DDPM, multiply-add on the up path alone", where="up", reported=(0.631, 0.678)),
    **{f"ddpm-multiply-add-seed{n}": s for n, s in _again("pixel DDPM, multiply-add", paths("up+down")).items()},
    **{f"ddpm-up-seed{n}": s for n, s in _again("pixel DDPM, multiply-add on the up path alone", paths("up")).items()},
    "ddpm-cosine": System("pixel DDPM, T = 500, beta-cosine", "ddpm", COSINE, (0.931, 0.810), "not stated", report=2),
    "ddpm-cosine-patches": System(
        "pixel DDPM, T = 500, beta-cosine, on 8x8 patches, told order and places",
        "ddpm",
        (*COSINE, "ddpm.ema=0.995"),
        (0.931, 0.810),
        "not stated",
        recipe=PATCHES,
        report=2,
        tried="T = 1000 with the other schedule, ddpm-patches, reaches more",
        longer=0.48,
    ),
    "ddpm-places": _pixels("multiply-add, told the places", "ddpm.network=multiply-add", "ddpm.places=true"),
    "ddpm-patches": System("pixel DDPM on 8x8 patches, told order and places", "ddpm", recipe=PATCHES),
    "onestep": System("one-step generator distilled from the LDM", "onestep"),
    "gan-placed": System("WGAN-GP on a map of places", "gan", (*MAP, *READ)),
    "gan-auxiliary-placed": System(
        "auxiliary-classifier WGAN-GP on a map of places",
        "gan",
        (*MAP, *READ, "gan.critic.condition=auxiliary", "gan.auxiliary_schedule=rising"),
        (0.972, 0.845),
        "not stated",
        report=2,
        tried="Half as many steps again: previews no longer rise",
        longer=1.5,
    ),
    "gan-placed-generator": System("WGAN-GP, only the generator on a map of places", "gan", (*MAP, POOLED[1])),
    "gan-placed-critic": System("WGAN-GP, only the critic on a map of places", "gan", (POOLED[0], *READ)),
    **_choices("gan", "loss", LOSSES, "adversarial loss", *POOLED),
    **_choices("gan", "critic.condition", CRITIC_CONDITIONS, "critic's condition", *POOLED, CONSTANT),
    **_choices("gan", "generator.condition", GENERATOR_CONDITIONS, "generator's condition", *POOLED),
    **_choices("gan", "body", BODIES, "body", *POOLED),
    "gan-attention": System("self-attention", "gan", (*POOLED, "gan.attention=true")),
    **{
        f"ldm-told-{name.replace(' ', '-')}": System(f"the LDM is told: {name}", "ldm", changes)
        for name, changes in TOLD.items()
        if name != "the set"
    },
    **_choices("ldm", "prediction", OF_X0, "prediction", *SIMPLE),
    **_choices("ldm", "prediction", ("mean",), "prediction", *SIMPLE, "eval.sampler=ancestral"),
    "ldm-bound": System(
        "prediction: noise, the bound's weights", "ldm", ("ldm.prediction=noise", "ldm.bound=true", "ldm.log_snr=null")
    ),
    **_choices("ldm", "schedule", SCHEDULES, "schedule"),
    "ldm-zero-terminal-snr": System(
        "linear schedule, zero terminal SNR",
        "ldm",
        ("ldm.schedule=linear", "ldm.zero_terminal_snr=true", "ldm.prediction=v", *SIMPLE),
    ),
    **_choices("ddpm", "prediction", OF_X0, "pixel DDPM, prediction", *unweighted("ddpm")),
    **_choices(
        "ddpm", "prediction", ("mean",), "pixel DDPM, prediction", *unweighted("ddpm"), "eval.sampler=ancestral"
    ),
    **_choices("ddpm", "schedule", SCHEDULES, "pixel DDPM, schedule"),
    "ddpm-bound": _pixels("the bound's weights", "ddpm.prediction=noise", "ddpm.bound=true", "ddpm.log_snr=null"),
    "ddpm-ddim": _pixels("sampler: DDIM", "eval.sampler=ddim"),
    "ddpm-classifier-free": _pixels("classifier-free guidance", "ddpm.label_dropout=0.1", "eval.guidance=3.0"),
    "ddpm-classifier": _pixels("classifier guidance", GUIDED),
    "ldm-unguided": System("without guidance", "ldm", ("eval.guidance=1.0", "eval.classifier_guidance=0.0")),
    "ldm-classifier": System(
        "classifier guidance alone, DDIM (algorithm 2)", "ldm", (GUIDED, "eval.guidance=1.0", "eval.sampler=ddim")
    ),
    "ldm-classifier-ancestral": System(
        "classifier guidance alone, DDPM (algorithm 1)", "ldm", (GUIDED, "eval.guidance=1.0", "eval.sampler=ancestral")
    ),
    "ldm-ancestral": System("sampler: DDPM", "ldm", ("eval.sampler=ancestral",)),
    **{
        f"ldm-ddim-{spacing}": System(
            f"sampler: DDIM, {spacing}", "ldm", ("eval.sampler=ddim", f"eval.spacing={spacing}")
        )
        for spacing in SPACINGS
    },
}
