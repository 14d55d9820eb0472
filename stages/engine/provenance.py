"""What an evaluation was made from: settings, pictures, weights, machine and code; and whether that still holds."""

import hashlib
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from models.condition import Condition
from stages.engine import distributed
from stages.engine.command import Context
from stages.engine.dataset import Dataset
from stages.engine.files import read_json
from stages.engine.machine import describe_device, versions
from stages.engine.run import differences
from stages.engine.schema import Eval

CODE = Path(__file__).resolve().parents[2]


def provenance_of(context: Context, dataset: Dataset, exports: dict[str, dict]) -> dict:
    """Returns what a report says of its making. `exports`: the descriptions of the exports used, by stage."""
    config = context.config.model_dump(mode="json")
    return {
        "experiment": context.config.name,
        "date": date.today().isoformat(),
        "configuration": config,
        "configuration_sha256": _digest_of(config),
        "data_sha256": dataset.sha256,
        "test_sets_sha256": _digest_of_sets(dataset, lambda asked: asked.objects),
        "parents": {stage: about["sha256"] for stage, about in exports.items()},
        "seeds": list(context.config.eval.seeds),
        "versions": versions(),
        "device": describe_device(context.device),
        "precision": str(context.dtype).removeprefix("torch."),
        "seconds": {stage: about["seconds"] for stage, about in exports.items()},
        "steps": {stage: about["steps"] for stage, about in exports.items()},
        "exports": {stage: about["identity"] for stage, about in exports.items()},  # how each was really trained
        "made_with": {
            stage: {key: about.get(key) for key in ("device", "versions")} for stage, about in exports.items()
        },
        "processes": distributed.world_size(),
        "code_sha256": _digest_of({str(p.relative_to(CODE)): p.read_text() for p in _sources()}),
    }


def _sources() -> list[Path]:
    """Lists the project's files only: the folder above may hold an environment with every package's files."""
    return sorted(path for part in ("data", "models", "stages") for path in (CODE / part).rglob("*.py"))


def _digest_of(*content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest_of_sets(dataset: Dataset, content: Callable[[Condition], Tensor]) -> str:
    sets = {name: content(asked).tolist() for name, asked in dataset.test_sets.items()}
    return _digest_of(sets, dataset.vocabulary.names)


def facts_of(provenance: dict) -> list[tuple[str, str]]:
    """Returns the provenance that people read, as (what, value)."""
    minutes = ", ".join(
        f"{stage} {provenance['seconds'][stage] / 60:.1f} min ({steps} steps)"
        for stage, steps in provenance["steps"].items()
    )
    hashes = ", ".join(f"{stage} {digest[:12]}" for stage, digest in provenance["parents"].items())
    return [
        ("device", f"{provenance['device']}, {provenance['precision']}"),
        ("training", minutes),
        ("configuration", provenance["configuration_sha256"][:12]),
        ("data", provenance["data_sha256"][:12]),
        ("exports", hashes),
        ("versions", ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())),
    ]


def is_current(context: Context, dataset: Dataset, exports: dict[str, dict]) -> bool:
    """Returns whether eval/ has a report of just these pictures, exports and settings."""
    provenance = read_json(context.folder("eval") / "report.json").get("provenance")
    old = dict(provenance) if isinstance(provenance, dict) else {}
    now = provenance_of(context, dataset, exports)
    was = old.get("parents")
    if isinstance(was, dict) and "vae" not in now["parents"]:  # an older report names one even if none was needed
        was.pop("vae", None)
    # an older report hashed the label sets without their order, which no model read then
    if old.get("test_sets_sha256") == _digest_of_sets(dataset, lambda asked: asked.labels):
        old["test_sets_sha256"] = now["test_sets_sha256"]
    same = ("data_sha256", "test_sets_sha256", "parents", "precision")
    unchanged = _eval_of(old) == context.config.eval and _reported_in(old) == _reported_in(now)
    return unchanged and not differences({k: old.get(k) for k in same}, {k: now[k] for k in same})


def _reported_in(provenance: dict) -> dict | None:
    """Returns the figures of others that a report shows beside its own."""
    configuration = provenance.get("configuration")
    return configuration.get("reported") if isinstance(configuration, dict) else None


def _eval_of(provenance: dict) -> Eval | None:
    """Returns the `eval` section of an earlier report, with defaults for newer keys; None if it is not valid."""
    try:
        return Eval.model_validate(provenance["configuration"]["eval"], strict=False)
    except (KeyError, TypeError, ValidationError):
        return None
