"""Writes the model card of a release: what each model is, how it was made, what was measured, where its limits are."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import torch

from models.choices import MODELS, WORDS
from stages.engine.command import Context
from stages.engine.errors import UserError
from stages.engine.export import DTYPES
from stages.engine.files import from_json, write_atomically
from stages.engine.schema import Config
from stages.models import title
from stages.use.find import SHIPPED, is_shipped

TEMPLATE = Path(__file__).with_name("card.md.jinja")


def as_range(numbers: Sequence[int]) -> str:
    """Returns "0 to 4" for whole numbers in a row, otherwise all of them: "3, 7, 9"."""
    first, last = numbers[0], numbers[-1]
    in_a_row = len(numbers) > 2 and list(numbers) == list(range(first, last + 1))
    return f"{first} to {last}" if in_a_row else ", ".join(map(str, numbers))


def write_card(
    context: Context,
    folder: Path,
    exports: dict[str, dict],
    hashes: Mapping[str, tuple[str, str]],
    kind: torch.dtype,
    losses: dict[torch.dtype, float],
) -> list[dict]:
    """Writes README.md into a release. Returns the reports whose figures it shows.

    `exports`: the descriptions of the experiment's exports, by stage; `hashes`: those of their weights, before and
    after rounding. Raises UserError for a report that measured other weights, or in which a figure is missing.
    """
    config, to = context.config, Path(context.arguments.to)
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"figure": lambda value: "–" if value is None else f"{value:.3f}", "range": as_range}
    made = [model for model in config.models if model in exports]
    paths = reports_of(context)
    reports = [read_report(path, context, hashes) for path in paths]
    content = {
        "config": config,
        "file": context.arguments.config,
        "set": _settings(context, made),
        "made": made,
        "flags": _flags(context),
        "shipped": is_shipped(to),
        "folder": to.name,
        "to": to.as_posix() if to.parent.name else f"./{to}",  # the library takes a bare name for one in checkpoints/
        "stages": [
            (stage, title(stage, config) if stage in MODELS else WORDS[stage].title, WORDS[stage].what, about)
            for stage, about in exports.items()
        ],
        "kind": DTYPES[kind],
        "losses": {DTYPES[one]: f"{loss:.1e}" for one, loss in losses.items()},
        "reports": reports,
        "of_these": lambda report, stage: report["parents"].get(stage) == hashes[stage][1],
        "otherwise": {stage: _drawn_otherwise(about, config) for stage, about in exports.items()},
    }
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    try:
        text = template.render(content)
    except (TypeError, ValueError, jinja2.UndefinedError):  # only reports are read as they come
        raise UserError(
            f"{', '.join(map(str, paths))}: a figure is missing or no number; evaluate again, or leave it out"
        ) from None
    write_atomically(folder / "README.md", text.encode())
    return reports


def figures_of(reports: Sequence[dict], released: Mapping[str, str]) -> dict[str, dict]:
    """Returns each model's accuracies, from the first report that has them, for cards that `make export` writes.

    `released`: the sha256 of each stage's released weights, to which the figures belong. `measured` in what is
    returned is that of the weights that were evaluated, before or after rounding.
    """
    found: dict[str, dict] = {}
    for report in reports:
        for model, sets in report["results"].items():
            if model in released and model not in found:
                shown = {
                    name: {"accuracy": of["accuracy"], "std": of["std"]} for name, of in sets.items() if "std" in of
                }
                measured = report["parents"].get(model)
                seeds = len(report["seeds"])
                found[model] = {"export": released[model], "measured": measured, "seeds": seeds, "sets": shown}
    return found


def _settings(context: Context, models: Sequence[str]) -> str:
    """Returns the settings besides the configuration with which Make trains these models and no others.

    The experiment's folder is not part of its recipe.
    """
    told = [words for words in getattr(context.arguments, "overrides", []) if not words.startswith("root=")]
    if [*models] != [*context.config.models]:  # `make eval` trains what `models` names
        told = [words for words in told if not words.startswith("models=")] + [f"models=[{','.join(models)}]"]
    return f' SET="{" ".join(told)}"' if told else ""


def _drawn_otherwise(about: dict, config: Config) -> str:
    """Returns the settings of `eval` with which a one-step generator's pairs were drawn, where they are others now."""
    identity, now = about.get("identity", {}), config.eval.model_dump(mode="json")
    was = {key: identity.get(f"parent eval.{key}", value) for key, value in now.items()}
    return " ".join(f"eval.{k}={json.dumps(v, separators=(',', ':'))}" for k, v in was.items() if v != now[k])


def _flags(context: Context) -> str:
    """Returns the flags of the release, as they are where experiments lie in their usual place."""
    root, usual = Path(context.config.root).absolute(), Path(Config.model_fields["root"].default)

    def shown(path: Path) -> str:
        inside = path.absolute().is_relative_to(root)
        return shlex.quote(str(usual / path.absolute().relative_to(root) if inside else path))

    to, reports = Path(context.arguments.to), [shown(Path(path)) for path in context.arguments.report]
    words = ["--to", str(SHIPPED) if is_shipped(to) else shown(to), *(["--report", *reports] if reports else [])]
    return " ".join(words)


def reports_of(context: Context) -> list[Path]:
    """Returns the report.json files whose figures the card shows: the experiment's own, and those of --report."""
    own = context.folder("eval") / "report.json"
    others = (path for path in map(Path, context.arguments.report) if path.resolve() != own.resolve())
    return [*([own] if own.is_file() else []), *others]


def read_report(path: Path, context: Context, hashes: Mapping[str, tuple[str, str]]) -> dict:
    """Reads what the card shows of a report.json of `make eval`. Raises UserError, also if it is of other weights."""
    try:
        report = from_json(path.read_text(encoding="utf-8"))
        provenance, judge = report["provenance"], report["evaluator"]
        found = {
            "experiment": provenance["experiment"],
            "date": provenance["date"],
            "seeds": provenance["seeds"],
            "judge": judge["real_accuracy"],
            "others": dict(report.get("other_judges", {})),
            "vae": dict(report["vae"]) if report.get("vae") else None,
            "results": {model: dict(sets) for model, sets in report["results"].items()},
            "parents": (parents := dict(provenance["parents"])),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a report.json of `make eval` ({type(error).__name__}: {error})") from None
    quoted = [*found["results"], *(["vae"] if found["vae"] is not None else [])]
    if found["experiment"] == context.config.name:  # "its judge" is the one in the release
        quoted += ["evaluator", "reader"] if "reader" in parents else ["evaluator"]
    for stage in quoted:
        if stage in hashes and parents.get(stage) not in hashes[stage]:
            raise UserError(
                f"{path} measured another {stage} than the one in {context.export(stage)}; evaluate again "
                f"({context.make('eval')}), or leave the report out"
            )
    if not set(quoted) & hashes.keys():
        raise UserError(f"{path} measured none of {', '.join(hashes)}; leave it out")
    return found
