"""Reads a configuration: YAML file and `section.key=value` overrides -> a typed, frozen `Config`."""

import difflib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import yaml
from pydantic import BaseModel, ValidationError

from models.choices import DIFFUSION, EVERY_TIMESTEP, MODELS, PLACED_CRITIC_CONDITIONS
from stages.engine.errors import UserError, of_the_system, oneline
from stages.engine.schema import Config, Denoising, Gan, Network


class _Loader(yaml.SafeLoader):
    """Loads safe YAML, reads 1e-4 as a number (YAML 1.1 requires 1.0e-4), and rejects a key that is given twice."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _parse(text: str, where: str):
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or oneline(error)
        raise UserError(f"{where}{line}: not valid YAML ({problem})") from None
    except (RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{where}: not a configuration ({oneline(error)})") from None


def _read(path: Path) -> dict:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(p.as_posix() for p in Path("configs").glob("*.yaml"))
        raise UserError(f"no configuration {path}; there are {', '.join(near) or 'none in configs/'}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; a configuration is a YAML file such as configs/demo.yaml") from None
    except OSError as error:
        raise of_the_system(error, f"cannot read {path}") from None
    except ValueError as error:  # no file can have this name
        raise UserError(f"cannot read {path}: {oneline(error)}; a configuration is a file in configs/") from None
    content = _parse(text, str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: a configuration is a mapping of sections, such as configs/demo.yaml")
    return content


def _read_extended(path: Path, depth: int = 0) -> dict:
    """Reads a file and merges it over the file beside it that `extends` names: sections merge, values are replaced."""
    content = _read(path)
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str) or depth > 4:
        raise UserError(f"{path}: extends must name one file beside it, such as iclevr.yaml, and form no circle")
    below = _read_extended(path.parent / base, depth + 1)
    below.pop("name", None)
    return _merged(below, content)


def _merged(below: dict, above: dict) -> dict:
    both = below.keys() & above.keys()
    deeper = {k: _merged(below[k], above[k]) for k in both if isinstance(below[k], dict) and isinstance(above[k], dict)}
    return below | above | deeper


def _override(content: dict, text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override {text!r}: write section.key=value, such as ldm.steps=2000")
    target, path = content, key.split(".")
    for part in path[:-1]:
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
        if not isinstance(target, dict):
            raise UserError(f"override {text!r}: {part} is not a section")
    target[path[-1]] = value if _is_text(path) and value != "null" else _parse(value, f"override {text!r}")


def _is_text(path: list[str]) -> bool:
    """Returns True if the key holds a string: its value is taken as written and not parsed as YAML."""
    try:
        field = _section_at(tuple(path[:-1])).model_fields[path[-1]]
    except (KeyError, AttributeError):
        return False  # an unknown key is reported later, with the nearest name
    return field.annotation in (str, str | None)


def _section_at(path: tuple) -> type[BaseModel]:
    section: type[BaseModel] = Config
    for part in path:
        annotation = section.model_fields[part].annotation
        candidates = (*get_args(annotation), annotation)
        section = next(a for a in candidates if a is not type(None))  # of `Ddpm | None`
    return section


def _explain(error: ValidationError, where: str) -> str:
    """Returns the first fault as one line: the key's path, what is wrong, the nearest valid name."""
    fault = error.errors()[0]
    path = fault["loc"]
    key = ".".join(map(str, path))
    if fault["type"] == "extra_forbidden":
        names = list(_section_at(path[:-1]).model_fields)
        near = difflib.get_close_matches(str(path[-1]), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(names)}"
        return f"{where}: unknown key {key}; {hint}"
    if fault["type"] == "missing":
        return f"{where}: {key} is missing; see configs/demo.yaml for an example"
    message = fault["msg"].replace("Input should", "should")
    return f"{where}: {key} {message}, not {_shown(fault['input'])[:60]}"


def _shown(value: object) -> str:
    try:
        return json.dumps(value, default=str)
    except (TypeError, ValueError):  # keys that are not text, or a YAML alias to itself
        return repr(value)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Loads a configuration file with overrides. The experiment is named after the file unless `name` is set.

    Raises a one-line UserError for any mistake in either.
    """
    path = Path(path)
    content = _read_extended(path)
    content.setdefault("name", path.stem)
    return _validated(content, overrides, path)


def derive(config: Config, overrides: Sequence[str]) -> Config:
    """Returns a configuration with further overrides. Raises UserError as `load` does."""
    return _validated(config.model_dump(mode="json"), overrides, Path(f"{config.name}, derived"))


def _validated(content: dict, overrides: Sequence[str], path: Path) -> Config:
    for text in overrides:
        _override(content, text)
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        raise UserError(_explain(error, str(path))) from None
    if not _plain(config.name):
        raise UserError(f"{path}: name {config.name!r} must be a plain folder name")
    _check(config, path)
    return config


def _plain(name: str) -> bool:
    """Returns True for a name that is a single folder, not a path."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None


def _check(config: Config, where: Path) -> None:
    """Checks the rules that involve several keys."""
    for key, value in flatten(config).items():
        if isinstance(value, str) and not value.isprintable():
            raise UserError(f"{where}: {key} {value!r} holds a character that cannot be printed; choose another name")
    trained = ("evaluator", "reader", "vae", *MODELS)
    for stage in trained:
        section = getattr(config, stage)
        if section and section.warmup >= section.steps:
            raise UserError(f"{where}: {stage}.warmup ({section.warmup}) must be below {stage}.steps ({section.steps})")
    for stage, experiment in config.uses.items():
        if stage not in (*trained, "guide") or not _plain(experiment):
            raise UserError(f"{where}: uses.{stage}={experiment}: write a stage and an experiment, such as vae: iclevr")
    if config.vae.windows_until and config.vae.label_weight:
        raise UserError(
            f"{where}: vae.label_weight needs whole pictures, vae.windows_until trains on parts of them; set one to 0, "
            f"or use vae.cell_weight instead"
        )
    if config.vae.fsq.levels % 2 == 0:
        raise UserError(f"{where}: vae.fsq.levels ({config.vae.fsq.levels}) must be odd so that 0 is a level; set 7")
    if config.vae.quantizer == "fsq" and config.vae.fsq.levels**config.vae.latent_channels >= 2**63:
        raise UserError(
            f"{where}: vae.fsq.levels ({config.vae.fsq.levels}) with vae.latent_channels "
            f"({config.vae.latent_channels}) give more codes than 64 bits can count; lower one of them"
        )
    if config.vae.quantizer == "residual" and config.vae.residual.codes**config.vae.residual.quantizers >= 2**63:
        raise UserError(
            f"{where}: vae.residual.codes ({config.vae.residual.codes}) to the power of vae.residual.quantizers "
            f"({config.vae.residual.quantizers}) are more codes than 64 bits can count; lower one of them"
        )
    if len(config.vae.channels) != 3:
        raise UserError(f"{where}: vae.channels needs three numbers, one per resolution (64 -> 32 -> 16 -> 8 pixels)")
    if not config.eval.seeds:
        raise UserError(f"{where}: eval.seeds is empty; five seeds are usual: [0, 1, 2, 3, 4]")
    low, high = config.eval.interval
    if not 0 <= low < high <= 1:
        raise UserError(f"{where}: eval.interval [{low}, {high}] must be two rising numbers in 0..1")
    if config.eval.classifier_guidance and "guide" not in config.uses:
        raise UserError(
            f"{where}: eval.classifier_guidance needs a guide that is not the judge: uses.guide=EXPERIMENT, whose "
            f"evaluator was trained from another seed"
        )
    for stage in DIFFUSION:
        if section := getattr(config, stage):
            _check_denoising(section, stage, config, where)
    starts: dict[str, int] = {config.vae.quantizer: config.vae.quantized_from}
    if config.vae.discriminator.weight > 0:
        starts["discriminator"] = config.vae.discriminator.start
    for key, start in starts.items():
        if start >= config.vae.steps:
            raise UserError(f"{where}: vae.{key}.start ({start}) must be below vae.steps ({config.vae.steps})")
    _check_gan(config.gan, where)
    _check_network(config.ldm.network, "ldm.network", where)
    if config.ddpm and config.ddpm.network == "patches":
        _check_network(config.ddpm.unet, "ddpm.unet", where)
        if config.ddpm.places:
            raise UserError(f"{where}: ddpm.places needs network=multiply-add; for patches set ddpm.unet.places=true")
        if config.eval.clip is not None and config.eval.sampler == "ancestral" and "ddpm" in config.models:
            raise UserError(
                f"{where}: eval.clip ({config.eval.clip:g}) bounds x_0, which with ddpm.network=patches is measured in "
                f"the pixels' deviations; set eval.clip=null"
            )


def _check_gan(gan: Gan, where: Path) -> None:
    """Checks the keys of the GAN's two networks together, so that neither network ignores one."""
    generator, critic = gan.generator, gan.critic
    if generator.entry == "map" and generator.condition != "modulation":
        raise UserError(
            f"{where}: gan.generator.entry=map modulates its norms by noise and labels; set "
            f"gan.generator.condition=modulation, not {generator.condition}"
        )
    if critic.read == "places" and critic.condition not in PLACED_CRITIC_CONDITIONS:
        raise UserError(
            f"{where}: gan.critic.read=places does not support gan.critic.condition={critic.condition}; set one of "
            f"{', '.join(PLACED_CRITIC_CONDITIONS)}"
        )
    if critic.read == "places" and critic.pool != "sum":
        raise UserError(
            f"{where}: gan.critic.read=places sums its features over the map; set gan.critic.pool=sum, not "
            f"{critic.pool}"
        )
    if gan.attention and gan.needs_places:
        raise UserError(
            f"{where}: gan.attention=true needs gan.generator.entry=vector and gan.critic.read=pooled; set both, or "
            f"gan.attention=false"
        )
    sides = {"generator": 8 if generator.entry == "map" else 4, "critic": 8 if critic.read == "places" else 4}
    for key, side in sides.items():
        widths, needed = getattr(gan, key).channels, 1 + int(math.log2(gan.size // side))
        if len(widths) < needed:
            raise UserError(
                f"{where}: gan.{key}.channels {list(widths)} are too few: give at least {needed}, one per resolution "
                f"between {side}x{side} and the {gan.size}x{gan.size} that gan.space and gan.stem set"
            )


def _check_network(network: Network, key: str, where: Path) -> None:
    """Checks the keys of a cross-attention UNet together. `key` is the name of its section."""
    if (network.heads is None) == (network.head_width is None):
        raise UserError(f"{where}: give one of {key}.heads and {key}.head_width, and null for the other")
    if network.condition == "vector" and network.wants_layouts:
        raise UserError(
            f"{where}: {key}.condition=vector is one token for the whole set, without order or places; set "
            f"{key}.condition=tokens, or order=false and places=false"
        )
    widths = [network.channels * m for m in network.multipliers]
    if network.channels % 2 or len(widths) > 4:
        raise UserError(f"{where}: {key}.channels must be even, with at most four multipliers (8x8 to 1x1)")
    if any(w % network.heads_at(w) for w in widths):
        raise UserError(f"{where}: the heads must divide every width of {key} ({widths}); change head_width or heads")


def _check_denoising(section: Denoising, stage: str, config: Config, where: Path) -> None:
    """Checks a diffusion model's keys together and, if it is evaluated, with the keys of `eval`."""
    if section.zero_terminal_snr and section.prediction in ("noise", "mean"):
        raise UserError(
            f"{where}: {stage}.zero_terminal_snr needs {stage}.prediction=v or x0, not {section.prediction}"
        )
    if section.zero_terminal_snr and (section.min_snr or section.log_snr) and not section.bound:
        raise UserError(
            f"{where}: {stage}.zero_terminal_snr ends in pure noise, which min_snr and log_snr give no weight; set "
            f"{stage}.min_snr=null {stage}.log_snr=null"
        )
    if section.bound and section.log_snr:
        raise UserError(f"{where}: {stage}.bound and {stage}.log_snr are both loss weights; give one of them")
    if stage not in config.models:
        return
    if config.eval.sampler not in EVERY_TIMESTEP and config.eval.steps > section.timesteps:
        raise UserError(f"{where}: eval.steps ({config.eval.steps}) exceeds {stage}.timesteps ({section.timesteps})")
    if section.label_dropout == 0 and config.eval.guidance != 1:
        raise UserError(f"{where}: eval.guidance other than 1 needs {stage}.label_dropout above 0, such as 0.1")


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


DERIVED = ("diffusion", "drawer")


def main() -> None:
    """Prints one value of a configuration for the Makefile: that of a key, or one derived from several (DERIVED)."""
    import argparse

    parser = argparse.ArgumentParser(description="Checks a configuration; prints it, or one of its values.")
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--print", metavar="section.key", default="")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    try:
        config = load(arguments.config, arguments.overrides)
        value = config.model_dump(mode="json") | {name: getattr(config, name) for name in DERIVED if arguments.print}
        for part in filter(None, arguments.print.split(".")):
            value = value[part]
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    except (KeyError, TypeError):
        parser.exit(2, f"error: no key {arguments.print}\n")
    if isinstance(value, dict):
        print(yaml.safe_dump(value, sort_keys=False).rstrip("\n."))
    else:
        print(*value if isinstance(value, list) else [value])


if __name__ == "__main__":
    main()
