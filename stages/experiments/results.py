"""`make results`: reads report.json files into docs/results.json, and writes the documentation's tables from it.

docs/results.json holds figures and where they come from, never weights or pictures. `entries` are measurements by name,
such as "iclevr/ldm"; `tables` are heads and rows of text, in which {iclevr/ldm:test} stands for a figure. A table is
written between `<!-- results:NAME -->` and `<!-- end -->` of a page.
"""

import argparse
import json
import re
import shlex
from pathlib import Path
from statistics import fmean, stdev

from stages.engine.errors import UserError
from stages.engine.files import from_json, write_atomically
from stages.engine.schema import REPORTED
from stages.experiments.pairs import PAIRS, Row, compared
from stages.experiments.systems import SYSTEMS

PAGES = ("README.md", "docs/results.md")
FILE = "docs/results.json"
ROWS = "reproduce/"  # what the entries of `make reproduce` begin with; TABLE shows all of them
OF_PAIRS = "pairs/"  # and those of rows that are compared, which follow from the rows
TABLE = "systems"
CELLS = (  # of a row of TABLE: NAME is the entry, KEY the row of `make reproduce`
    *("{NAME:system}", "`KEY`", "{NAME:reported}", "{NAME:test}", "{NAME:new_test}"),
    "{NAME:test.other_judges} / {NAME:new_test.other_judges}; {NAME:test.agreement.d2} / {NAME:new_test.agreement.d2}",
    "{NAME:quality.frechet_distance.d1}, {NAME:quality.precision.d2}, {NAME:quality.recall.d2}",
    *("{NAME:budget}", ""),  # the note is written by hand
)
MARKED = re.compile(r"(<!-- results:([\w-]+) -->\n).*?(<!-- end -->)", re.S)
FIGURE = re.compile(r"\{([^{}:]+):([\w.]+)\}")
KEPT = (  # of a row of `make reproduce`
    *("seeds", "training_seed", "steps", "device", "judge", "real_accuracy", "date", "settings", "quality", "floor"),
    *("command", "configuration", "export_sha256"),
)
OURS = {"data.folder": "DIR", "evaluator.checkpoint": "FILE"}  # what a command says in place of this machine's paths
COUNTED = ("no", "one", "two", "three", "four")


def said(value: object) -> str:
    """Returns a value as a table shows it: a share without the zero, mean ± deviation, thousands with a comma."""
    if isinstance(value, dict) and "accuracy" in value:
        return said(value["accuracy"]) + (f" ± {said(value['std'])}" if value.get("std") is not None else "")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return _without_zero(f"{round(value, 3) + 0.0:.3f}")  # + 0.0: a rounded -0.0004 would be "-.000"


def _without_zero(number: str) -> str:
    """Returns a number's text without the zero before its point: ".5", "-.5"."""
    return re.sub(r"^(-?)0\.", r"\1.", number)


def figure_of(entries: dict, name: str, field: str) -> str:
    """Returns a field of an entry as text, "not measured" without it.

    A field is a key, keys within keys with dots between, or `budget`: steps and minutes. `minutes.whole` has no
    decimals, and a last part such as `d1` says how many decimals a number has.
    """
    value = entries.get(name)
    if field == "budget":
        steps, minutes = (figure_of(entries, name, part) for part in ("steps", "minutes"))
        return f"{steps} steps" + (f", {minutes}" if (value or {}).get("minutes") is not None else "")
    for part in field.split("."):
        if part == "whole" and isinstance(value, float):
            return f"{value:.0f} min"
        if re.fullmatch(r"d\d", part) and isinstance(value, float):
            return _without_zero(f"{value:.{part[1]}f}")
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return "not measured"
    return f"{value:.1f} min" if field == "minutes" else said(value)


def table_of(table: dict, entries: dict) -> str:
    """Returns a table as Markdown. Raises UserError if a row has other cells than the head."""
    lines = []
    for row in [table["head"], ["---"] * len(table["head"]), *table["rows"]]:
        if len(row) != len(table["head"]):
            raise UserError(f"{FILE}: a row of {len(row)} cells below a head of {len(table['head'])}: {row[0]}")
        cells = [FIGURE.sub(lambda found: figure_of(entries, *found.groups()), cell) for cell in row]
        ruled = "|---" * len(cells) + "|"
        lines.append(ruled if row[0] == "---" else "|" + "|".join(f" {c} " if c else " " for c in cells) + "|")
    return "\n".join(lines)


def written(page: str, text: str, results: dict) -> str:
    """Returns a page's text with its tables written again. Raises UserError for a table that is not in the file."""

    def again(found: re.Match) -> str:
        begin, name, end = found.groups()
        if name not in results["tables"]:
            raise UserError(f"{page}: no table {name} in {FILE}; it has {', '.join(results['tables'])}")
        return f"{begin}\n{table_of(results['tables'][name], results['entries'])}\n\n{end}"

    return MARKED.sub(again, text)


def _cores(device: str) -> str:
    """Returns "one core" of a CPU's description, which ends in its threads; of a GPU its name."""
    if not (number := re.search(r", (\d+) threads?$", device)):
        return device
    count = int(number.group(1))
    return f"{COUNTED[count] if count < len(COUNTED) else count} core{'s' * (count != 1)}"


def _trained(provenance: dict, stage: str) -> dict:
    made = provenance["made_with"].get(stage) or {}
    return {
        "steps": provenance["steps"][stage],
        "minutes": round(provenance["seconds"][stage] / 60, 1),
        "device": made.get("device"),
        "cores": _cores(made.get("device") or ""),
    }


def _sets(figures: dict) -> dict:
    """Returns accuracy, deviation and the other judges' mean on each test set."""
    found = {}
    for name, values in figures.items():
        if name == "held_out":
            found[name] = values
            continue
        found[name] = {"accuracy": values["accuracy"], "std": values["std"], "by_objects": values["by_objects"]}
        if opinions := values.get("by_other_judges"):
            found[name] |= {"other_judges": opinions["accuracy"], "agreement": opinions["agreement"]}
    return found


def _of_eval(report: dict, source: str) -> dict[str, dict]:
    """Returns the entries of an evaluation's report.json: its models, judge, autoencoder and reader."""
    provenance = report["provenance"]
    name = provenance["experiment"]
    common = {
        "date": provenance["date"],
        "judge": report["evaluator"]["kind"],
        "configuration_sha256": provenance["configuration_sha256"],
        "code_sha256": provenance["code_sha256"],
        "source": source,
    }
    seeds = {"seeds": provenance["seeds"]}
    found = {f"{name}/{m}": _sets(f) | _trained(provenance, m) | seeds | common for m, f in report["results"].items()}
    real = {"real_accuracy": report["evaluator"]["real_accuracy"]}
    found[f"{name}/evaluator"] = real | _trained(provenance, "evaluator") | common
    for stage in ("vae", "reader"):
        if report.get(stage):
            found[f"{name}/{stage}"] = report[stage] | _trained(provenance, stage) | common
    return found


def _of_rows(rows: dict, source: str) -> dict[str, dict]:
    """Returns the entries of `make reproduce`'s report.json: the rows with figures."""
    found = {}
    for key, row in rows.items():
        if "figures" in row:
            found[ROWS + key] = _sets(row["figures"]) | {name: row[name] for name in KEPT if name in row}
            reported = " / ".join(map(said, row["reported"])) if row.get("reported") else "–"
            found[ROWS + key] |= {"system": row["system"], "reported": reported, "minutes": round(row["minutes"], 1)}
            found[ROWS + key] |= {"cores": _cores(row["device"]), "source": source}
            if "command" in row:
                found[ROWS + key]["command"] = _for_others(row["command"])
    return found


def _for_others(command: str) -> str:
    """Returns a command without the places of this machine's folders and files."""
    words = [word for word in shlex.split(command) if not word.startswith("root=")]
    keys = [word.partition("=")[0] for word in words]
    return shlex.join(f"{key}={OURS[key]}" if key in OURS else word for key, word in zip(keys, words, strict=True))


def entries_of(path: Path) -> dict[str, dict]:
    """Reads a report.json, or the one in a folder. Raises UserError if it is of neither `make eval` nor `reproduce`."""
    path = path / "report.json" if path.is_dir() else path
    try:
        report = from_json(path.read_text())
        if "provenance" in report:  # its place is named as where experiments usually lie
            source = Path("checkpoints", report["provenance"]["experiment"], path.parent.name, path.name)
            return _of_eval(report, source.as_posix())
        if report and report.keys() <= SYSTEMS.keys():
            return _of_rows(report, Path("checkpoints/reproduce", path.name).as_posix())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a report of `make eval` or `make reproduce` ({error!r:.80})") from None
    raise UserError(
        f"{path}: not a report of `make eval` or `make reproduce`; give a folder such as checkpoints/demo/eval"
    )


def _of_pairs(entries: dict[str, dict]) -> dict[str, dict]:
    """Returns an entry for each of PAIRS with two or more trainings on both sides: means, deviations, difference."""
    found = {}
    for pair in PAIRS.values():
        known = {key: entries[ROWS + key] for keys in pair for key in keys if ROWS + key in entries}
        sides = compared(pair, {key: Row.of(key, row, row, REPORTED) for key, row in known.items()})
        if sides is None:
            continue
        row = next(iter(known.values()))
        about: dict = {key: row.get(key) for key in ("source", "steps", "seeds", "judge")}
        about |= {"date": max(row.get("date") or "" for row in known.values()), "trainings": sides.trainings}
        for side, values in (("first", sides.first), ("second", sides.second)):
            about[side] = {n: {"accuracy": fmean(of_set), "std": stdev(of_set)} for n, of_set in values.items()}
            about[side]["trainings"] = len(next(iter(values.values())))
        about["difference"] = {
            name: dict(zip(("accuracy", "std"), sides.difference(name), strict=True)) for name in sides.first
        }
        found[OF_PAIRS + pair[0][0]] = about
    return found


def with_entries(results: dict, found: dict[str, dict]) -> dict:
    """Returns the results with new entries, and what follows from them.

    Rows of `make reproduce` that no row of TABLE names are added to it, and rows that differ in one choice over
    several trainings are compared.
    """
    known = {name: entry for name, entry in results["entries"].items() if not name.startswith(OF_PAIRS)}
    entries, tables = known | found, dict(results["tables"])
    entries |= _of_pairs(entries)
    if TABLE in tables:
        named = {name for row in tables[TABLE]["rows"] for cell in row for name, _ in FIGURE.findall(cell)}
        more = [_row(name) for name in found if name.startswith(ROWS) and name not in named]
        tables[TABLE] = tables[TABLE] | {"rows": [*tables[TABLE]["rows"], *more]}
    return {"entries": entries, "tables": tables}


def _row(name: str) -> list[str]:
    """Returns the row of TABLE that shows an entry of `make reproduce`."""
    return [cell.replace("NAME", name).replace("KEY", name.removeprefix(ROWS)) for cell in CELLS]


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the documentation's tables from docs/results.json.")
    parser.add_argument("reports", nargs="*", type=Path, metavar="FOLDER", help="reports that are read into it first")
    arguments = parser.parse_args()
    try:
        results = json.loads(Path(FILE).read_text())
        found: dict[str, dict] = {}
        for path in arguments.reports:
            entries = entries_of(path)
            found |= entries
            print(f"{path}: {', '.join(entries)}")
        results = with_entries(results, found)  # also without reports: the file may have been edited by hand
        texts = {page: written(page, Path(page).read_text(), results) for page in PAGES}
        write_atomically(Path(FILE), (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())
        for page, text in texts.items():
            write_atomically(Path(page), text.encode())
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.exit(2, f"error: {FILE} or a page cannot be read ({error!r:.80}); run this in the project's folder\n")


if __name__ == "__main__":
    main()
