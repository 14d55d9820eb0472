"""`make reproduce`: runs the reports' systems and choices that are missing; shows ours beside the reports' figures."""

import argparse
import json
import shlex
import time
from dataclasses import replace
from pathlib import Path

from stages.commands import COMMANDS
from stages.engine.command import Context, run_command
from stages.engine.errors import UserError
from stages.engine.export import read_about
from stages.engine.lock import locked
from stages.engine.log import say
from stages.engine.report.page import Page
from stages.engine.schema import REPORTED, Config
from stages.evaluate import main as evaluate
from stages.evaluator import main as train_evaluator
from stages.experiments.ablations import lacks, section_of
from stages.experiments.systems import GUIDED, MULTIPLY_ADD, SYSTEMS, System
from stages.judge import shown
from stages.models import MODELS


def asked_of(context: Context, system: System) -> list[str]:
    """Returns the command line's overrides for the model and its evaluation."""
    return [o for o in context.arguments.overrides if o.startswith((f"{system.model}.", "eval."))]


def recipe_of(context: Context, system: System) -> str | None:
    """Returns the other configuration that a row's section is taken from, or None if it is the experiment's."""
    return system.recipe or (MULTIPLY_ADD if lacks(context, system.model) else None)


def changes_of(context: Context, key: str) -> list[str]:
    """Returns a row's overrides: a section that the experiment lacks, the command line's, and what defines the row."""
    a, system = context.arguments, SYSTEMS[key]
    lent = recipe_of(context, system)
    changes = section_of(lent, system.model) if lent else []
    changes += [*asked_of(context, system), *system.changes, f"models=[{system.model}]"]
    changes.append(f"reported={json.dumps({system.model: system.reported} if system.reported else {})}")
    if GUIDED in system.changes:  # another network than the judge, even where the judge is the lab's
        changes.append(f"uses.guide={context.config.name}-guide")
    if a.steps is None:
        return changes
    section = getattr(context.derived(named(context, key), *changes).config, system.model)
    if section.steps > a.steps:
        changes += [f"{system.model}.steps={a.steps}", f"{system.model}.warmup={min(section.warmup, a.steps // 8)}"]
    return changes


def named(context: Context, key: str) -> str:
    """Returns the name of the experiment in which a row is evaluated."""
    return f"{context.config.name}-{key.replace('+', '-')}"


def homes_of(context: Context) -> dict[str, Context]:
    """Returns where each row's model is trained: the first experiment with its section, so that none is trained twice.

    A row with the experiment's section uses the experiment's model, which --fresh does not touch.
    """
    itself = replace(context, arguments=argparse.Namespace(**vars(context.arguments) | {"fresh": False}))
    learned: dict[str, list[tuple[object, Context]]] = {m: [(getattr(context.config, m), itself)] for m in MODELS}
    homes = {}
    for key, system in SYSTEMS.items():
        try:
            row = context.derived(named(context, key), *changes_of(context, key))
        except UserError:  # reported when that row is run
            continue
        section = getattr(row.config, system.model)
        alike = [home for other, home in learned[system.model] if other == section]
        learned[system.model].append((section, row))
        homes[key] = alike[0] if alike else row
    return homes


def told_of(config: Config, model: str) -> str:
    """Describes what a row's model is told that the reports' models were not."""
    if not config.places_of(model):
        return ""
    places = "chosen by the program" if config.eval.places == "chosen" else "left open"
    return f" (trained with places; asked by labels only, places {places})"


def run(context: Context, key: str, homes: dict[str, Context]) -> dict:
    """Trains and evaluates what a row lacks. Returns what the page shows of the row."""
    system, name = SYSTEMS[key], named(context, key)
    row = context.derived(name, *changes_of(context, key))
    if (home := homes[key]).config.name != name:
        lender = home.config.uses.get(system.model, home.config.name)
        row = context.derived(name, *changes_of(context, key), f"uses.{system.model}={lender}")
    if GUIDED in system.changes:
        other = ("uses={}", f"seed={context.config.seed + 1}", "evaluator.checkpoint=null")
        train_evaluator(context.derived(f"{context.config.name}-guide", *other))
    MODELS[system.model].train(replace(home, began=time.perf_counter()))
    evaluate(row)
    report = json.loads((row.folder("eval") / "report.json").read_text())
    about = read_about(row.export(system.model), "")
    return {
        "system": system.words + told_of(row.config, system.model),
        "reported": system.reported,
        "figures": report["results"][system.model],
        "configuration": recipe_of(context, system) or context.arguments.config,
        "settings": [*asked_of(context, system), *system.changes],
        "seeds": list(row.config.eval.seeds),
        "steps": about["steps"],
        "minutes": about["seconds"] / 60,
        "device": about["device"],
        "judge": report["evaluator"]["kind"],
        "command": command_of(context, key),
    }


def command_of(context: Context, key: str) -> str:
    """Returns the command that repeats one row."""
    a = context.arguments
    steps = ["--steps", str(a.steps)] if a.steps else []
    words = ["-m", "stages.experiments.reproduce", "--config", a.config, *steps, "--only", key, "--", *a.overrides]
    return f".venv/bin/python {shlex.join(words)}"


def missing(key: str, fault: str, command: str | None = None) -> dict:
    """Returns what the page shows of a row without figures. A row that was not asked for has no command either."""
    system = SYSTEMS[key]
    return {
        "system": system.words,
        "reported": system.reported,
        "fault": fault,
        "command": command,
    }


def how_of(result: dict) -> str | None:
    """Describes a row's configuration and the changes to it."""
    return ", ".join([*filter(None, [result.get("configuration")]), *result.get("settings", [])]) or None


def judged_on(result: dict) -> str:
    """Describes where a row was trained, and which evaluator judged it."""
    return f"{result['device']}, {result['judge']} evaluator"


def row_of(key: str, result: dict, alike: bool, sets: tuple[str, ...]) -> list:
    """Returns a table row; a guide's accuracy follows the judge's. `alike`: all rows have one device and judge.

    `sets`: the test sets that have a column; a row of an earlier command may lack one.
    """

    def with_guide(figures: dict | None) -> str | None:
        if figures is None:
            return None
        guide = figures.get("accuracy_by_the_guide")
        return shown(figures) + (f" (guide {guide:.3f})" if guide else "")

    reported = [*(result["reported"] or [None, None]), SYSTEMS[key].budget]
    if "fault" in result:
        return [result["system"], *reported, result["fault"], *[None] * len(sets)]
    budget = f"{result['steps']:,} steps, {result['minutes']:.1f} min" + ("" if alike else f", {judged_on(result)}")
    ours = [with_guide(result["figures"].get(part)) for part in sets]
    return [result["system"], *reported, *ours, budget]


def write_page(context: Context, results: dict[str, dict]) -> Path:
    """Writes the page of all rows: those that this command and earlier ones ran, and those still to be run."""
    rows = {key: results.get(key) or missing(key, "not run yet") for key in SYSTEMS}
    where = {judged_on(result) for result in results.values() if "figures" in result}
    page = Page(
        "The reports' systems, side by side",
        "Ours: mean ± deviation over the sampling seeds of one training, five unless report.json names others, fixed "
        f"before the run; {' or '.join(sorted(where)) or 'none yet'}. The reports' figures are mostly their best "
        "epoch, by the lab's evaluator. A budget covers the model's training only; autoencoder and evaluator are the "
        "experiment's. Where ours scores lower, compare the budgets first. The reports' models were told label sets "
        "only; a row of ours that was trained with places says so.",
    )
    first, *others = sets = context.config.data.conditions
    head = ["", f"report: {REPORTED[0]}", REPORTED[1], "its budget", f"ours: {first}", *others, "our budget"]
    page.add_table("Systems", head, [row_of(key, row, len(where) < 2, sets) for key, row in rows.items()])
    again = [[row["system"], how_of(row), row["command"]] for row in rows.values()]
    page.add_table("What each row is, and the command that repeats it", ["", "configuration", "command"], again)
    return page.write(Path(context.config.root) / "reproduce", results)


def main(context: Context) -> None:
    folder = Path(context.config.root) / "reproduce"
    context.held.enter_context(locked(folder))
    try:
        results = json.loads((folder / "report.json").read_text())
    except (OSError, ValueError):
        results = {}
    homes, failed = homes_of(context), []
    for key in context.arguments.only:
        say(f"{context.config.name}/reproduce: {key}, {SYSTEMS[key].words}")
        try:
            results[key] = run(context, key, homes)
        except UserError as error:  # one row's failure must not stop the others
            say(f"warning: {key}: {error}")
            failed.append(key)
            if "figures" not in results.get(key, {}):  # a row keeps its earlier figures
                results[key] = missing(key, f"not run: {error}", command_of(context, key))
        path = write_page(context, results)
    print(path)
    if failed:
        raise UserError(f"{len(failed)} of {len(context.arguments.only)} rows were not run, see above: {failed}")


if __name__ == "__main__":
    run_command(COMMANDS["experiments.reproduce"], main)
