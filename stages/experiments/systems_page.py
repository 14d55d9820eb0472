"""Writes the page of `make reproduce`: all rows in one table, by report, and the pictures of one label set together."""

import json
import re
from pathlib import Path

from stages.engine.command import Context
from stages.engine.dataset import Dataset
from stages.engine.files import write_atomically
from stages.engine.pictures import cell_of
from stages.engine.report import write_texts
from stages.experiments.pairs import PAIRS, Row, compared
from stages.experiments.quality import cells
from stages.experiments.systems import SYSTEMS
from stages.judge import shown
from stages.models import MODELS

NAMES = {1: "first", 2: "second", 3: "third", 4: "fourth"}
OWN = ("onestep", "ddpm-places", "ddpm-patches", "gan-placed", "gan-placed-generator", "gan-placed-critic")
MOST = 3  # objects of the label sets that are shown, from one on


def group_of(key: str) -> str:
    """Returns the heading of a row's group."""
    system = SYSTEMS[key]
    if system.report:
        return f"The {NAMES[system.report]} report"
    if key in OWN:
        return "This project's own"
    return f"One choice at a time: {MODELS[system.model].short}"


def mean_of(result: dict, sets: tuple[str, ...]) -> float:
    """Returns a row's accuracy over the test sets, -1 without figures: what rows are sorted by."""
    found = [f["accuracy"] for name in sets if (f := result.get("figures", {}).get(name))]
    return sum(found) / len(found) if found else -1.0


def short_of(key: str, result: dict, sets: tuple[str, ...]) -> str:
    """Describes whether a row reaches its report; if not, how far it is short, after which budget, what was tried."""
    system = SYSTEMS[key]
    if "fault" in result:
        return result["fault"]
    ours = {name: result["figures"][name]["accuracy"] for name in sets if name in result["figures"]}
    lacks = {name: max(0.0, report - ours[name]) for name, report in system.reported_on(ours).items()}
    if not lacks:  # no report, or none of these files of label sets
        return ""
    where = "" if [*lacks] == [*sets] else f" on {' / '.join(lacks)}"
    if not any(lacks.values()):
        return f"reached{where}"
    words = "short by " + " / ".join(f"{lack:.3f}" for lack in lacks.values()) + where
    if theirs := re.match(r"[\d,]+(?= steps)", system.budget or ""):
        words += f", after {result['steps']:,} of the report's {theirs.group()} steps"
    return f"{words}. {system.tried}".rstrip() if system.tried else words


def _cell(figures: dict | None) -> dict:
    guide = (figures or {}).get("accuracy_by_the_guide")
    return {"figure": shown(figures) if figures else "–", "guide": f"{guide:.3f}" if guide else None}


def _features_of(quality: dict | None) -> str:
    return f"; quality on features: {quality['features']}" if quality else ""


def _row(context: Context, key: str, result: dict, sets: tuple[str, ...]) -> dict:
    """Returns what the templates show of a row."""
    system, figures, quality = SYSTEMS[key], result.get("figures", {}), result.get("quality")
    report = system.reported_on(sets)
    others = [(figures.get(name) or {}).get("by_other_judges") for name in sets]
    agreements = [opinions["agreement"] for opinions in others if opinions]
    return {
        "key": key,
        "system": result.get("system", system.words),
        "reported": " / ".join(f"{report[name]:.3f}" if name in report else "–" for name in sets) if report else "–",
        "ours": [_cell(figures.get(name)) for name in sets if figures] or [_cell(None)],
        "others": [f"{opinions['accuracy']:.3f}" if opinions else "–" for opinions in others] if figures else ["–"],
        "agreement": sum(agreements) / len(agreements) if agreements else None,
        "quality": cells(quality),
        "seeds": len(result["seeds"]) if "seeds" in result else "",
        "steps": f"{result['steps']:,}" if "steps" in result else "",
        "minutes": f"{result['minutes']:.1f}" if "minutes" in result else "",
        "short": short_of(key, result, sets),
        "configuration": ", ".join([*filter(None, [result.get("configuration")]), *result.get("settings", [])]),
        "on": f"{result['device']}; {result['judge']} evaluator{_features_of(quality)}" if figures else None,
        "command": result.get("command"),
    }


def _sheet(context: Context, key: str, result: dict, name: str) -> bytes | None:
    """Returns the grid of a row's pictures of a test set, if it is there."""
    folder = Path(context.config.root) / result.get("experiment", f"{context.config.name}-{key.replace('+', '-')}")
    path = folder / "eval" / f"{SYSTEMS[key].model}-{name}.png"
    return path.read_bytes() if "figures" in result and path.is_file() else None


def shown_sets(dataset: Dataset) -> list[tuple[str, int]]:
    """Returns which label sets are shown: the first of one, two and three objects in each file, as (file, place)."""
    found = []
    for name, asked in dataset.test_sets.items():
        counts = asked.labels.sum(1).tolist()
        found += [(name, counts.index(n)) for n in range(1, MOST + 1) if n in counts]
    return found


def ordered(results: dict[str, dict], sets: tuple[str, ...]) -> dict[str, list[str]]:
    """Returns the rows of each group, the best first: groups in the order of SYSTEMS, rows without figures last."""
    groups: dict[str, list[str]] = {}
    reports = sorted(SYSTEMS, key=lambda key: (SYSTEMS[key].report or 9, key not in OWN))
    for key in reports:
        groups.setdefault(group_of(key), []).append(key)
    return {title: sorted(keys, key=lambda key: -mean_of(results.get(key, {}), sets)) for title, keys in groups.items()}


def differences_of(results: dict[str, dict], sets: tuple[str, ...]) -> list[str]:
    """Describes how much paired rows differ: the difference of means over trainings, and its standard error."""
    notes = []
    known = {key: Row.of(key, row, row["figures"], sets) for key, row in results.items() if "figures" in row}
    for words, pair in PAIRS.items():
        if sides := compared(pair, known):
            found = ["{:+.3f} ± {:.3f}".format(*sides.difference(name)) for name in sides.first]
            text = f"{words}, {sides.trainings} trainings: {' / '.join(found)} (difference, standard error)."
            notes.append(text.capitalize())
    return notes


def _group(title: str, keys: list[str], results: dict, shown_rows: dict) -> dict:
    """Returns a group for the templates. Rows that were never run are only named, except those of the reports."""
    listed = [key for key in keys if key in results or SYSTEMS[key].reported]
    return {"title": title, "rows": [shown_rows[k] for k in listed], "missing": [k for k in keys if k not in listed]}


WORDS = (
    "Ours: mean ± deviation over sampling seeds of one training, fixed before the run. The course reports' figures are "
    "mostly their best epoch, by the lab's evaluator. Steps and minutes are of the model's training alone; "
    "autoencoder and evaluator are shared. The reports' models got label sets only; a row of ours that was "
    "trained with places says so."
)


def write_page(context: Context, results: dict[str, dict], dataset: Dataset) -> Path:
    """Writes report.json, report.md and report.html of all rows: those with figures, and those still to be run."""
    sets = context.config.data.conditions
    rows = {key: results.get(key) or {"fault": "not run yet"} for key in SYSTEMS}
    groups = ordered(results, sets)
    order = [key for keys in groups.values() for key in keys]
    pictures, thumbnails = [], {}
    for name, place in shown_sets(dataset):
        asked, made = dataset.test_sets[name], []
        for key in order:
            if sheet := _sheet(context, key, rows[key], name):
                made.append({"key": key, "picture": cell_of(sheet, place, dataset.size)})
                thumbnails[key] = made[-1]["picture"]  # the last one has most objects
        labels = dataset.vocabulary.describe(asked.labels[place : place + 1])[0]
        if made:
            seed = context.config.eval.seeds[0]
            pictures.append({"labels": labels, "name": name, "place": place + 1, "seed": seed, "made": made})
    shown_rows = {key: _row(context, key, row, sets) | {"picture": thumbnails.get(key)} for key, row in rows.items()}
    floors = {row["floor"]["features"]: cells(row["floor"]) for row in results.values() if row.get("floor")}
    quality = sorted({row["quality_words"] for row in results.values() if row.get("quality_words")})
    judges = any(row["agreement"] is not None for row in shown_rows.values())
    opinions = (
        "Further judges: the mean over evaluators of other seeds, by which nothing was chosen. Agree: the share of "
        "labels on which all judges agree."
        if judges
        else "No further judges have scored these rows: `make judges` trains them, and the same command then asks them."
    )
    content = {
        "title": "The reports' systems, side by side",
        "words": WORDS,
        "sets": sets,
        "judges": judges,
        "groups": [_group(title, keys, results, shown_rows) for title, keys in groups.items()],
        "floors": dict(sorted(floors.items())),
        "real": next((row["real_accuracy"] for row in results.values() if "real_accuracy" in row), None),
        "notes": [*differences_of(results, sets), opinions, *quality],
        "pictures": pictures,
    }
    folder = Path(context.config.root) / "reproduce"
    write_texts(folder, "systems", content)
    write_atomically(folder / "report.json", json.dumps(results, indent=2).encode())
    return folder / "report.html"
