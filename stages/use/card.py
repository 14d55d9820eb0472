"""Writes the model card of a release: what each model is, how it was made, what was measured, where its limits are."""

import json
from pathlib import Path

import jinja2
import torch

from models.choices import MODELS
from stages.engine.command import Context
from stages.engine.errors import UserError
from stages.engine.export import DTYPES
from stages.engine.files import write_atomically
from stages.models import title

TEMPLATE = Path(__file__).with_name("card.md.jinja")
WORDS = {
    "evaluator": ("Evaluator, the judge", "A ResNet-18 that scores which objects a picture shows."),
    "reader": ("Reader of places", "A small network that finds objects and where they are; it measures placing."),
    "vae": (
        "Autoencoder",
        "A VQ-VAE with a patch discriminator, between pictures and latents of an eighth of their side.",
    ),
}


def write_card(
    context: Context, folder: Path, exports: dict[str, dict], kind: torch.dtype, losses: dict[torch.dtype, float]
) -> None:
    """Writes README.md into a release. `exports`: the descriptions of the experiment's exports, by stage."""
    config = context.config
    named = WORDS | {model: (title(model, config), words) for model, words in MODELS.items()}
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"figure": lambda value: "–" if value is None else f"{value:.3f}"}
    content = {
        "config": config,
        "file": context.arguments.config,
        "stages": [(stage, *named[stage], about) for stage, about in exports.items()],
        "kind": DTYPES[kind],
        "losses": {DTYPES[one]: f"{loss:.1e}" for one, loss in losses.items()},
        "reports": [read_report(path) for path in reports_of(context)],
    }
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(content)
    write_atomically(folder / "README.md", text.encode())


def reports_of(context: Context) -> list[Path]:
    """Returns the report.json files whose figures the card shows: the experiment's own, and those of --report."""
    own = context.folder("eval") / "report.json"
    return [*([own] if own.is_file() else []), *map(Path, context.arguments.report)]


def read_report(path: Path) -> dict:
    """Reads a report.json of `make eval`: `results`, `evaluator`, `provenance`. Raises UserError."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        provenance, judge = report["provenance"], report["evaluator"]
        return {
            "experiment": provenance["experiment"],
            "date": provenance["date"],
            "seeds": provenance["seeds"],
            "how": provenance["configuration"]["eval"],
            "judge": judge["real_accuracy"],
            "vae": (report.get("vae") or {}).get("reconstruction_accuracy"),
            "results": {
                model: {name: figures for name, figures in sets.items()} for model, sets in report["results"].items()
            },
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no report.json of `make eval` ({type(error).__name__}: {error})") from None
