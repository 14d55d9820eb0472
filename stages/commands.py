"""Lists every command, its help and its flags in one table, without torch, so that `--help` and mistakes are fast."""

import argparse
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from os.path import expanduser
from pathlib import Path

from models.choices import DIFFUSION, MODELS, WORDS
from stages.engine.arguments import Command, add_fresh
from stages.engine.config import Config
from stages.engine.errors import UserError, of_the_system
from stages.engine.rules import (
    SECTIONS,
    check_sampling,
    refuse_asked_places,
    refuse_missing_section,
    refuse_undistillable,
)
from stages.experiments.systems import GROUPS, SYSTEMS
from stages.use.find import check_release, refuse_training_in_a_release
from stages.use.output import check_output

# what `make bench` and `make growth` measure: the names of stages/benchmark's tables
BENCH_ROWS = ("ldm", "ldm-compiled", "vae", "gan", "sampling", "sampling-compiled", "few-steps", "reading", "rates")
GROWTH_AXES = ("LDM: batch", "LDM: latent side", "LDM: width", "stage 1: batch", "stage 1: codes")
LONGEST = 60.0  # total seconds of one contender, from its fifth time on: a slow one is measured fewer times
COMPARED = 300  # pictures of a model, and as many real ones: Fréchet distance, precision and recall depend on it


def _sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", required=True, metavar="TEXT", help='such as "red cube at 0.3 0.6, cyan sphere"')
    parser.add_argument("--count", type=int, default=8, help="how many pictures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="picture i has the key (seed, i) (default: %(default)s)")
    out = "a .png, .jpg or .webp file, a .gif of the denoising, or a folder/ for single files (default: %(default)s)"
    parser.add_argument("--out", default="sample.png", type=expanduser, metavar="FILE", help=out)
    parser.add_argument("--animate", action="store_true", help="show the denoising in a .webp file too")
    parser.add_argument("--model", choices=MODELS, help="the model that draws (default: from `models`)")
    parser.add_argument("--steps", type=int, help="sampling steps of a diffusion model (default: eval.steps)")
    parser.add_argument("--guidance", type=float, help="guidance of a diffusion model (default: eval.guidance)")


def _check_sample(a: argparse.Namespace, config: Config) -> None:
    if a.count < 1:
        raise UserError(f"--count {a.count}: ask for at least one picture")
    if a.steps is not None and a.steps < 1:
        raise UserError(f"--steps {a.steps}: take at least one step")
    if a.guidance is not None and not 0 <= a.guidance < math.inf:
        raise UserError(f"--guidance {a.guidance}: must be a finite number of at least 0; 1 means no guidance")
    if (a.model or config.drawer) not in DIFFUSION and (a.steps is not None or a.guidance is not None):
        raise UserError("--steps and --guidance are for diffusion models: leave them out, or use --model ldm")
    model = a.model or config.drawer
    _check_model(a, config)
    check_output(a.out, a.animate, model)
    if model in DIFFUSION and model not in config.uses:
        told = {"steps": a.steps, "guidance": a.guidance}
        how = config.eval.model_copy(update={key: value for key, value in told.items() if value is not None})
        check_sampling(getattr(config, model), model, how, a.config)
    if not config.uses:
        placed = any(_check_labels(a.labels, config.data.folders))
        if placed and not config.takes_places("ldm" if model == "onestep" else model):
            refuse_asked_places(a.labels, model)


def _check_labels(text: str, folders: Sequence[str]) -> list:
    """Checks the objects asked for against those of the data, unless all are packs: before a model is trained.

    Returns the place of each that has one.
    """
    from data.labels import CLEVR, DataError, read_vocabulary  # takes torch, which the other commands' checks do not

    plain = [folder for folder in folders if not folder.endswith(".safetensors")]
    if folders and not plain:
        return []
    try:
        vocabulary = read_vocabulary(Path(plain[0]) / "objects.json") if plain else CLEVR
        return [place for place in vocabulary.parse(text)[1] if place]
    except DataError as error:
        raise UserError(str(error)) from None


def _check_files(config: Config) -> None:
    """Raises UserError if a file of weights is named but missing, and the stage that takes it is not finished."""
    perceptual = config.vae.perceptual
    for stage, key, file, without in (
        ("evaluator", "evaluator.checkpoint", config.evaluator.checkpoint, "evaluator.checkpoint=null to train one"),
        ("vae", "vae.perceptual.weights", perceptual.weights if perceptual.weight else None, "vae.perceptual.weight=0"),
    ):
        export = Path(config.root) / config.name / stage / "export.safetensors"
        if file and stage not in config.uses and not export.is_file() and not Path(file).is_file():
            raise UserError(f"{key}: {file} is missing; put it there, or set {without}")


def _check_stage(stage: str) -> Callable[[argparse.Namespace, Config], None]:
    """Returns the check of a stage that trains."""
    refuse = refuse_training_in_a_release(stage)

    def check(a: argparse.Namespace, config: Config) -> None:
        refuse(a, config)
        if stage in SECTIONS:
            refuse_missing_section(config, stage, a.config)
        _check_files(config)
        if stage in DIFFUSION and stage not in config.uses:  # a preview takes fewer steps if need be
            check_sampling(getattr(config, stage), stage, config.eval.model_copy(update={"steps": 1}), a.config)
        finished = (Path(config.root) / config.name / stage / "export.safetensors").is_file() and not a.fresh
        if stage == "onestep" and not finished and stage not in config.uses:
            refuse_undistillable(config.eval, None if "ldm" in config.uses else config.ldm.prediction)

    return check


def _release(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to", type=expanduser, metavar="FOLDER", help="a new folder, or a release to replace (required)"
    )
    parser.add_argument(
        "--report", type=expanduser, nargs="+", default=[], metavar="FILE", help="more report.json files"
    )


EXPORT_NEEDS = ("onnx", "onnxscript", "onnxruntime", "huggingface_hub")  # the packages of the extra `export`


def _export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=expanduser, metavar="FOLDER", help="a new or empty folder (default: exports/NAME)"
    )


def export_folder(out: str | None, config: Config) -> Path:
    """Returns the folder that `make export` writes: `--out`, or one named after the experiment."""
    return Path(out or f"exports/{config.name}")


def _check_export(a: argparse.Namespace, config: Config) -> None:
    if missing := [package for package in EXPORT_NEEDS if find_spec(package) is None]:
        raise UserError(
            f"not installed, of the extra `export`: {', '.join(missing)}; run `make setup-export`, or "
            f".venv/bin/python -m pip install --require-hashes -r requirements-export.lock"
        )
    folder = export_folder(a.out, config)
    try:
        taken = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise of_the_system(error, f"--out {folder}") from None
    if taken:
        raise UserError(f"--out {folder}: it exists and is not an empty folder; name another, or move it aside")


def _placed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", metavar="TEXT", help='such as "red cube, cyan sphere": the last one is moved')
    add_fresh(parser)


def refuse_places(text: str, places: Sequence) -> None:
    """Raises UserError if --labels says where an object is: the page of `make placed` chooses the places."""
    if any(places):
        raise UserError(f"--labels {text!r}: the page chooses the places; leave the places out")


def _check_placed(a: argparse.Namespace, config: Config) -> None:
    if a.labels is not None:
        refuse_places(a.labels, _check_labels(a.labels, config.data.folders))
    models = {"ldm" if model == "onestep" else model for model in config.models}
    if not models & config.uses.keys() and not any(map(config.takes_places, models)):
        raise UserError(f"{a.config}: no model here takes places; set ldm.network.places=true")


HELD_OUT = ("ldm", "gan")  # the models that `make held-out` trains again and asks


def _check_held_out(a: argparse.Namespace, config: Config) -> None:
    if not {*HELD_OUT} & {*config.models}:
        raise UserError(f"{a.config}: `models` has neither {' nor '.join(HELD_OUT)}; add one of them")


def _check_model(a: argparse.Namespace, config: Config) -> None:
    """Checks that there is a section for the model of --model, which Make trains first, and how it is sampled."""
    if a.model in SECTIONS:
        refuse_missing_section(config, a.model, a.config)


def _check_diffusion(a: argparse.Namespace, config: Config) -> None:
    """Checks a command that samples one diffusion model."""
    _check_model(a, config)
    model = a.model or next((model for model in config.models if model in DIFFUSION), None)
    if model is not None and model not in config.uses:
        check_sampling(getattr(config, model), model, config.eval, a.config)


def _gradnorm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=400, help="generator steps of each run (default: %(default)s)")
    add_fresh(parser)


def _diffusion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=DIFFUSION, help="diffusion model (default: the configuration's)")
    add_fresh(parser)


def _ablations(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=400, help="steps of each training (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=2, help="trainings per value, seeds from 0 (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="groups (default: all)")
    add_fresh(parser)


def _check_ablations(a: argparse.Namespace, config: Config) -> None:
    if a.steps < 1 or a.runs < 1:
        raise UserError(f"--steps {a.steps} --runs {a.runs}: both must be at least 1")


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pictures", type=int, default=COMPARED, help="pictures for the distance (default: %(default)s)"
    )
    add_fresh(parser)


def _check_compare(a: argparse.Namespace, config: Config) -> None:
    if a.pictures < 2:
        raise UserError(f"--pictures {a.pictures}: a distance needs at least two")


def _pace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accuracy",
        type=float,
        default=0.8,
        help="accuracy to pass on both test sets with one seed (default: %(default)s)",
    )
    parser.add_argument("--to-the-end", action="store_true", help="continue training after it has passed")
    add_fresh(parser)


def _check_pace(a: argparse.Namespace, config: Config) -> None:
    if not 0 <= a.accuracy < 1:
        raise UserError(f"--accuracy {a.accuracy}: give a number from 0 to below 1")


def _check_steps(a: argparse.Namespace, config: Config) -> None:
    if a.steps is not None and a.steps < 1:
        raise UserError(f"--steps {a.steps}: must be at least 1")


def _reproduce(parser: argparse.ArgumentParser) -> None:
    rows = f"rows to run (default: all): {', '.join(SYSTEMS)}"
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="SYSTEM", help=rows)
    parser.add_argument("--steps", type=int, help="limit on steps per training (default: the configurations')")
    parser.add_argument("--jobs", type=int, default=1, help="rows at once, one a core (default: %(default)s)")
    parser.add_argument("--hours", type=float, help="save and stop after this time (default: never)")
    parser.add_argument("--plan", action="store_true", help="only print what is missing and how long it will take")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)  # this is a child, of the row --only
    add_fresh(parser)


def _check_reproduce(a: argparse.Namespace, config: Config) -> None:
    _check_steps(a, config)
    if a.jobs < 1:
        raise UserError(f"--jobs {a.jobs}: must be at least 1")
    if a.hours is not None and not 0 < a.hours < math.inf:
        raise UserError(f"--hours {a.hours:g}: give a positive number of hours, such as 0.5")


def _add_seconds(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of commands that measure."""
    parser.add_argument(
        "--seconds",
        type=_duration,
        default=1.0,
        help="shortest time of one measurement, in seconds (default: %(default)s)",
    )


def _add_only(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Adds the flag that chooses what a command measures, by comma-separated names; the default is everything."""

    def chosen(text: str) -> list[str]:
        wanted = [name.strip() for name in text.split(",") if name.strip()] or [*names]
        if unknown := set(wanted) - {*names}:
            raise argparse.ArgumentTypeError(f"{sorted(unknown)[0]} is unknown; choose from {', '.join(names)}")
        return wanted

    parser.add_argument(
        "--only",
        default="",
        type=chosen,
        metavar="NAME,...",
        help=f"what to measure (default: all): {', '.join(names)}",
    )


def _duration(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to below {LONGEST:g}")
    return seconds


def _bench(parser: argparse.ArgumentParser) -> None:
    _add_only(parser, BENCH_ROWS)
    _add_seconds(parser)
    add_fresh(parser)


def _growth(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pictures", default="18000,180000,1800000", metavar="N,...", help="sizes of made-up packs, 12 KiB per picture"
    )
    parser.add_argument(
        "--labels", default="18000,1800000", metavar="N,...", help="sizes of packs without pixels, 27 bytes per picture"
    )
    _add_only(parser, [*GROWTH_AXES, "pictures", "labels", "processes"])
    _add_seconds(parser)
    add_fresh(parser)


def _play(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="the port, 0 for a free one (default: %(default)s)")


def _check_play(a: argparse.Namespace, config: Config) -> None:
    if not 0 <= a.port < 2**16:
        raise UserError(f"--port {a.port}: give a number from 0 to {2**16 - 1}")


COMMANDS: dict[str, Command] = {  # by the module's name below `stages`
    "render": Command(
        "Draws i-CLEVR look-alikes with Mitsuba, in the lab's folder layout.",
        alone=True,
        check=lambda a, config: _check_files(config),
    ),
    **{stage: Command(words.stage, check=_check_stage(stage)) for stage, words in WORDS.items()},
    "evaluate": Command("Evaluates the models of a configuration on its test sets and writes the report."),
    "use.sample": Command("Draws pictures of the objects asked for.", _sample, alone=True, check=_check_sample),
    "use.release": Command("Writes an experiment's weights to share.", _release, alone=True, check=check_release),
    "use.export": Command(
        "Writes an experiment's networks for other programs.", _export, alone=True, check=_check_export
    ),
    "experiments.places": Command("Shows pictures with the places of their objects.", alone=True),
    "experiments.placed": Command("Asks for one object at eight places.", _placed, alone=True, check=_check_placed),
    "experiments.gradnorm": Command(
        "Compares the critic's gradient norms by layer.", _gradnorm, alone=True, check=_check_steps
    ),
    "experiments.progress": Command(
        "Shows samples from noise to picture.", _diffusion, alone=True, check=_check_diffusion
    ),
    "experiments.samplers": Command(
        "Compares DDPM's sampler with DDIM's by accuracy and time.", _diffusion, alone=True, check=_check_diffusion
    ),
    "experiments.ablations": Command(
        "Trains with one choice changed at a time, on a small budget.", _ablations, alone=True, check=_check_ablations
    ),
    "experiments.compare": Command("Compares the models of an experiment.", _compare, alone=True, check=_check_compare),
    "experiments.held_out": Command(
        "Trains without a share of the label sets, then asks for those.", alone=True, check=_check_held_out
    ),
    "experiments.pace": Command(
        "Measures the time until the LDM passes an accuracy.", _pace, alone=True, check=_check_pace
    ),
    "experiments.judges": Command("Trains two further judges, evaluators of other seeds.", alone=True),
    "experiments.reproduce": Command(
        "Runs every system of the reports and compares them.", _reproduce, alone=True, check=_check_reproduce
    ),
    "benchmark.bench": Command("Measures the steps against the plain way and other packages.", _bench, alone=True),
    "benchmark.growth": Command(
        "Measures how steps grow with batch, networks, pictures, processes.", _growth, alone=True
    ),
    "play": Command("Serves a page to draw from, until Ctrl-C.", _play, alone=True, check=_check_play),
}
