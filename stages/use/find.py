"""Finds an experiment's configuration and models, and knows the place and the files of a release. Without torch."""

import hashlib
from argparse import Namespace
from collections.abc import Callable, Sequence
from os import PathLike, fspath
from pathlib import Path

from models.choices import MODELS, WORDS
from stages.engine.config import Config, derive, load
from stages.engine.errors import UserError, of_the_system
from stages.engine.files import from_json
from stages.engine.rules import plain

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = Path("checkpoints/scenes")  # the weights that come with the project, from the repository's folder
SHIPPED_FROM = "scenes-trained"  # the experiment that they are of: configs/scenes.yaml
STAGES = tuple(WORDS)  # what an experiment has exports of
FIGURES = "figures.json"  # of a released experiment: the accuracies on its card, for programs
MANIFEST = "manifest.json"  # of a released experiment: {file: {"sha256": ..., "bytes": ...}}


def configuration_of(experiment: str | PathLike[str], settings: Sequence[str] = ()) -> tuple[Config, Path]:
    """Returns an experiment's configuration and the file that it came from. `experiment` as in `library.load`.

    A relative `root` is one of the repository's folder, where the commands run. Raises UserError.
    """
    try:
        words = fspath(experiment)
        path = Path(words).expanduser()
        path.resolve()
    except (TypeError, ValueError, RuntimeError):  # no text, no name of a file, a home that nobody has
        raise UserError(
            f"experiment {experiment!r}: give a name in checkpoints/, a folder or a configuration"
        ) from None
    if path.suffix in (".yaml", ".yml") or path.is_file():
        path = path if path.exists() or path.is_absolute() else REPOSITORY / path
        config = load(path, settings)
        return derive(config, [f"root={REPOSITORY / config.root}"]), path
    folder = REPOSITORY / "checkpoints" / words if plain(words) else path.resolve()
    file = _file_in(folder)
    return load(file, [f"root={folder.parent}", f"name={folder.name}", *settings]), file


def _file_in(folder: Path) -> Path:
    """Returns a folder's configuration: a released experiment's, or that of the model that was trained last."""
    if (file := folder / "config.yaml").is_file():
        return file
    trained = [folder / model / "config.yaml" for model in MODELS]
    trained = [file for file in trained if file.is_file() and file.with_name("export.safetensors").is_file()]
    if trained:
        return max(trained, key=lambda file: file.stat().st_mtime_ns)
    others = sorted(
        {file.parent.name for file in folder.parent.glob("*/config.yaml")}
        | {file.parents[1].name for model in MODELS for file in folder.parent.glob(f"*/{model}/export.safetensors")}
    )
    there = f"there are {', '.join(others)}" if others else "train one with `make ldm CONFIG=configs/demo.yaml`"
    raise UserError(f"no trained model in {folder}; {there}")


def available(config: Config) -> tuple[str, ...]:
    """Returns the models that have an export, the one that draws by default first."""
    root = Path(config.root)
    folders = {model: root / config.uses.get(model, config.name) / model for model in MODELS}
    trained = [model for model, folder in folders.items() if (folder / "export.safetensors").is_file()]
    return tuple(sorted(trained, key=lambda model: model != config.drawer))


def is_shipped(folder: Path) -> bool:
    """Returns True for the folder of the weights that come with the project, however it is written."""
    return folder.resolve() in (SHIPPED.resolve(), (REPOSITORY / SHIPPED).resolve())


def is_release(folder: Path) -> bool:
    """Returns True for the folder of a released experiment: in it nothing is trained."""
    return (folder / MANIFEST).is_file()


def refuse_training_in_a_release(stage: str) -> Callable[[Namespace, Config], None]:
    """Returns a command's check that nothing is trained in a release. Its own stages are finished, unless --fresh."""

    def check(arguments: Namespace, config: Config) -> None:
        folder = Path(config.root) / config.name
        finished = (folder / stage / "export.safetensors").is_file() and not arguments.fresh
        if (is_shipped(folder) or is_release(folder)) and not finished and stage not in config.uses:
            raise UserError(f"{folder} holds released weights, so nothing is trained there; set another name=")

    return check


def check_release(arguments: Namespace, config: Config) -> None:
    """Checks what can be known before weights are read: the data, what is trained, and the place. Raises UserError."""
    if arguments.to is None:
        raise UserError('name the folder to write with --to, such as FLAGS="--to checkpoints/mine-released"')
    to, own = Path(arguments.to), Path(config.root) / config.name
    if is_shipped(to) and config.name != SHIPPED_FROM:
        raise UserError(
            f"--to {to}: this folder is for the weights of {SHIPPED_FROM}, and this experiment is "
            f"{config.name}; name another folder"
        )
    if config.data.folder is not None:
        raise UserError(
            f"data.folder={config.data.folder}: only models of scenes drawn here are released; leave it out (DATA=)"
        )
    there = {stage: Path(config.root) / config.uses.get(stage, config.name) / stage for stage in STAGES}
    missing = [s for s in ("evaluator", config.drawer) if not (there[s] / "export.safetensors").is_file()]
    if missing:
        raise UserError(f"{own} has no {missing[0]} yet: train it with `make {missing[0]} CONFIG={arguments.config}`")
    if not plain(to.name) or to.absolute() == own.absolute():
        raise UserError(f"--to {to}: name another folder than the experiment's, such as {own}-released")
    if to.exists() and not is_release(to):
        raise UserError(f"--to {to}: what is there is not a release; move it aside, or name another folder")
    for file in arguments.report:
        if not Path(file).is_file():
            raise UserError(f"--report {file} is missing; name the report.json of a `make eval`")


def sha256_of_file(path: Path) -> str:
    """Returns the sha256 of a file's bytes. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, dict]:
    """Returns a released experiment's manifest, {} if the folder has none. Raises UserError."""
    path = folder / MANIFEST
    if not is_release(folder):
        return {}
    try:
        content = from_json(path.read_text(encoding="utf-8"))
        return {str(name): {"sha256": str(of["sha256"]), "bytes": int(of["bytes"])} for name, of in content.items()}
    except OSError as error:
        raise of_the_system(error, f"cannot read {path}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: restore it with `git checkout {path}`") from None


def refuse_tampered(folder: Path) -> None:
    """Raises UserError if a file of a released experiment is not the one that was released. Others pass."""
    for name, of in read_manifest(folder).items():
        path = folder / name
        try:
            same = path.stat().st_size == of["bytes"] and sha256_of_file(path) == of["sha256"]
        except FileNotFoundError:
            same = False
        except OSError as error:
            raise of_the_system(error, f"cannot read {path}") from None
        if not same:
            raise UserError(
                f"{path} is not the file that {folder / MANIFEST} names; restore it with `git checkout {path}`"
            )
