"""`make reproduce`: plans and runs the reports' systems that are missing; shows ours beside the reports' figures.

Each row is trained and evaluated by a child process, so that several can run at once, one a core.
"""

import json
import shlex
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path

import torch

from stages.commands import COMMANDS
from stages.engine.command import Context, run_command
from stages.engine.dataset import load_dataset
from stages.engine.errors import UserError
from stages.engine.export import read_about
from stages.engine.files import read_json, write_atomically
from stages.engine.lock import locked
from stages.engine.log import say
from stages.engine.provenance import is_current
from stages.engine.schema import Config
from stages.evaluate import exports_of
from stages.evaluate import main as evaluate
from stages.evaluator import main as train_evaluator
from stages.experiments.ablations import asked_of
from stages.experiments.jobs import Job, cores_for, end_with_the_parent, run_jobs
from stages.experiments.judges import another_evaluator
from stages.experiments.plan import (
    Pace,
    Paces,
    Planned,
    Shared,
    estimate,
    guide_minutes,
    in_order,
    missing_shared,
    newest_step,
    pairs_minutes,
    shared_words,
    table_of,
)
from stages.experiments.quality import load_quality
from stages.experiments.rows import homes_of, named, recipe_of, row_of, teacher_of, told_of, unrefreshed
from stages.experiments.systems import SYSTEMS
from stages.experiments.systems_page import write_page
from stages.judge import load_evaluator
from stages.models import MODELS


def run(context: Context, key: str, homes: dict[str, Context]) -> dict:
    """Trains and evaluates what a row lacks. Returns what the page shows of the row."""
    system, row = SYSTEMS[key], row_of(context, key, homes)
    home = homes[key]
    if "guide" in row.config.uses:
        train_evaluator(another_evaluator(unrefreshed(context), row.experiment_of("guide"), 1))
    if teacher := teacher_of(system.model, homes):  # --fresh starts it again in its own row
        MODELS[teacher[0]].train(replace(unrefreshed(teacher[1]), began=time.perf_counter()))
    MODELS[system.model].train(replace(home, began=time.perf_counter()))
    evaluate(row)
    report = json.loads((row.folder("eval") / "report.json").read_text())
    about = read_about(row.export(system.model), "")
    return {
        "system": system.words + told_of(row.config, system.model),
        "experiment": row.config.name,
        "reported": system.reported,
        "figures": report["results"][system.model],
        "configuration": recipe_of(context, system) or context.arguments.config,
        "settings": settings_of(context, key),
        "seeds": list(row.config.eval.seeds),
        "training_seed": about["identity"]["seed"],
        "steps": about["steps"],
        "minutes": about["seconds"] / 60,
        "device": about["device"],
        "judge": report["evaluator"]["kind"],
        "real_accuracy": report["evaluator"]["real_accuracy"],
        "date": report["provenance"]["date"],
        "export_sha256": about["sha256"],
        **quality_of(row, system.model),
        "command": command_of(context, key),
    }


def quality_of(row: Context, model: str) -> dict:
    """Returns a row's quality by other measures, with that of real pictures and words for the page; maybe nothing."""
    dataset = load_dataset(row.config, row.device)
    judge, _ = load_evaluator(row, len(dataset.vocabulary))
    if (quality := load_quality(row, dataset, judge)) is None:
        return {}
    sampler, _ = MODELS[model].load(row)
    say(f"{row.config.name}: quality by other measures, {len(quality.asked)} pictures")
    return {"quality": quality.of(sampler), "floor": quality.floor, "quality_words": quality.words}


def settings_of(context: Context, key: str) -> list[str]:
    """Returns the overrides that a row's results name: those of the command line and those that define the row."""
    return [*asked_of(context, SYSTEMS[key].model), *SYSTEMS[key].changes]


def command_of(context: Context, key: str) -> str:
    """Returns the command that repeats one row."""
    a = context.arguments
    steps = ["--steps", str(a.steps)] if a.steps else []
    words = ["-m", "stages.experiments.reproduce", "--config", a.config, *steps, "--only", key, "--", *a.overrides]
    return f".venv/bin/python {shlex.join(words)}"


def missing(key: str, fault: str, command: str | None = None) -> dict:
    """Returns what the page shows of a row without figures."""
    system = SYSTEMS[key]
    return {"system": system.words, "reported": system.reported, "fault": fault, "command": command}


def folder_of(context: Context) -> Path:
    return Path(context.config.root) / "reproduce"


def result_file(context: Context, key: str) -> Path:
    """Returns where a child leaves what it found."""
    return folder_of(context) / "rows" / f"{key}.json"


def run_row(context: Context, key: str) -> None:
    """Runs one row, in a child of the command: it ends when its parent does."""
    end_with_the_parent()
    found: dict = {}
    try:
        found = run(context, key, homes_of(context))
    except UserError as error:
        found = {"fault": f"not run: {error}"}
        raise
    finally:
        if found:
            write_atomically(result_file(context, key), json.dumps(found).encode())


class Planner:
    """Says which rows are missing, in the order of gain: accuracy that the report has and ours has not, per minute.

    Rows without a report's figure follow, the shortest first.
    """

    def __init__(self, context: Context, homes: dict[str, Context]):
        self.context, self.homes = context, homes
        self.dataset = cache(lambda: load_dataset(context.config, context.device))
        self.paces = Paces(folder_of(context) / "timing.json", self.dataset)

    @cached_property
    def shared(self) -> list[Shared]:
        """What rows share and Make makes before them, as far as it is missing."""
        return missing_shared(self.context, self.paces)

    def lacking(self, *rows: Config) -> list[str]:
        """Returns which of `shared` these rows need: what works on pixels needs no autoencoder."""
        needs_vae = any(config.needs_vae for config in rows)
        return [each.stage for each in self.shared if rows and (each.stage != "vae" or needs_vae)]

    def finished(self, key: str, results: dict[str, dict]) -> bool:
        """Returns whether a row's figures are of its present models, judges, pictures, settings and command."""
        result = results.get(key, {})
        if key not in self.homes or self.context.arguments.fresh or "figures" not in result:
            return False
        row = row_of(self.context, key, self.homes)
        try:
            exports = exports_of(row)
            current = is_current(row, self.dataset(), exports) and self._of_its_teacher(key, exports)
        except UserError:
            return False
        asked = result.get("command"), result.get("settings")
        return current and asked == (command_of(self.context, key), settings_of(self.context, key))

    def _of_its_teacher(self, key: str, exports: dict[str, dict]) -> bool:
        """Returns whether a row's model, if distilled, learned from the present teacher. Raises UserError."""
        if (teacher := teacher_of(model := SYSTEMS[key].model, self.homes)) is None:
            return True
        name, home = teacher
        return exports[model]["parents"][name] == read_about(home.export(name), "")["sha256"]

    def of(self, keys: Iterable[str], results: dict[str, dict]) -> list[Planned]:
        """Returns the rows of `keys` that are not finished, in the order in which they will run."""
        unfinished = [key for key in keys if not self.finished(key, results)]
        first = in_order([self._planned(key, results, frozenset()) for key in unfinished])
        trained, plan = frozenset[Path](), []
        for row in first:  # again in that order: a training that two rows share counts in the first
            plan.append(self._planned(row.key, results, trained))
            trained |= row.folders
        return plan

    def _teaching(self, home: Context, name: str, teacher: Context, trained: frozenset[Path]) -> float:
        """Returns the minutes that a distilled model's teacher takes, to train if no row before has it, and to draw."""
        pace = self.paces.of(teacher, name)
        minutes = pairs_minutes(home, pace)
        if teacher.export(name).parent not in trained:
            minutes += estimate(teacher, teacher, name, pace, self.dataset()).training
        return minutes

    def _planned(self, key: str, results: dict[str, dict], trained: frozenset[Path]) -> Planned:
        system = SYSTEMS[key]
        report = system.reported_on(self.context.config.data.conditions)
        ours = results.get(key, {}).get("figures", {})
        lacks = [max(0.0, of - ours.get(name, {}).get("accuracy", 0.0)) for name, of in report.items()]
        gain = sum(lacks) / max(1, len(lacks))
        if key not in self.homes:  # its child says why
            return Planned(key, 0.0, "not a valid configuration", gain, Path(), frozenset())
        home, row = self.homes[key], row_of(self.context, key, self.homes)
        folders = {model := home.export(system.model).parent}
        if "guide" in row.config.uses:
            folders.add(row.export("guide").parent)
        if teacher := teacher_of(system.model, self.homes):
            folders.add(teacher[1].export(teacher[0]).parent)
        steps, done = getattr(home.config, system.model).steps, newest_step(home, system.model)
        state = "to be evaluated" if done == steps else f"at step {done:,} of {steps:,}" if done else "not begun"
        if lacks := self.lacking(row.config):
            words = f"{state}; cannot be timed without {', '.join(lacks)}"
            return Planned(key, 0.0, words, gain, model, frozenset(folders))
        try:
            pace = Pace(self.paces.of(home, system.model).step, self.paces.of(row, system.model).call)
            found = estimate(row, home, system.model, pace, self.dataset())
            minutes = found.evaluation + (self._teaching(home, *teacher, trained) if teacher else 0.0)
        except UserError as error:
            return Planned(key, 0.0, f"cannot be timed: {error}", gain, model, frozenset(folders))
        if model not in trained:
            minutes += found.training
        if row.export("guide").parent not in trained:
            minutes += guide_minutes(row)
        return Planned(key, minutes, state, gain, model, frozenset(folders))


def read_results(context: Context) -> dict[str, dict]:
    """Returns the rows of this command's earlier runs, with what children left that no parent has read yet."""
    results = read_json(folder_of(context) / "report.json")
    for key in SYSTEMS:
        if "figures" in (found := read_json(result_file(context, key))):
            results[key] = found
    for key, row in results.items():
        if key in SYSTEMS and row.get("experiment", named(context, key)) != named(context, key):
            raise UserError(
                f"{folder_of(context)} has rows of another experiment ({row['experiment']}); move that folder aside, "
                f"or set another root=DIR"
            )
    return results


def jobs_of(context: Context, plan: list[Planned]) -> list[Job]:
    """Returns the children's commands: this one, with --row. A model that rows share starts again in the first only."""
    a, jobs, begun = context.arguments, list[Job](), frozenset[Path]()
    for row in plan:
        words = ["-m", "stages.experiments.reproduce", "--config", a.config, "--row", "--only", row.key]
        words += ["--steps", str(a.steps)] if a.steps else []
        words += ["--fresh"] if a.fresh and row.model not in begun else []
        begun |= {row.model}
        jobs.append(Job(row.key, (*words, "--", *a.overrides), row.folders))
    return jobs


def main(context: Context) -> None:
    a = context.arguments
    if a.row:
        run_row(context, a.only[0])
        return
    began = time.monotonic()
    cores = cores_for(a.jobs, context.device.type == "cpu")
    if len(cores) < a.jobs:
        say(f"warning: --jobs {a.jobs}, but this process is pinned to fewer cores: {len(cores)} at a time")
    if context.device.type == "cpu":
        torch.set_num_threads(1)  # as the rows have: they are timed here
    folder = folder_of(context)
    if not a.plan:  # a plan may be read while rows run
        context.held.enter_context(locked(folder))
    results, planner = read_results(context), Planner(context, homes_of(context))
    plan, sets = planner.of(a.only, results), context.config.data.conditions
    print(table_of(plan, results, sets, planner.shared))
    if planner.shared:
        print(shared_words(planner.shared, plan))
    minutes = f"{sum(row.minutes for row in plan):.0f} minutes of one core, {len(cores)} at a time"
    print(f"{len(plan)} of {len(a.only)} rows to run: {minutes}", flush=True)
    if a.plan:
        return
    rows = [row_of(context, row.key, planner.homes).config for row in plan if row.key in planner.homes]
    if lacks := planner.lacking(*rows):
        first = context.make("vae" if "vae" in lacks else "evaluator")
        raise UserError(f"{', '.join(lacks)}: not there yet; run {first} first, as `make reproduce` does")
    failed: dict[str, str] = {}

    def ended(key: str, status: int) -> None:
        unfinished = {"fault": f"ended with status {status} before its figures; the same command continues it"}
        found = read_json(result_file(context, key)) or unfinished
        if "fault" in found:
            failed[key] = found["fault"]
            say(f"warning: {key}: {found['fault']}")
            found = missing(key, found["fault"], command_of(context, key))
        if "figures" in found or "figures" not in results.get(key, {}):  # a row keeps its earlier figures
            results[key] = found
        write_page(context, results, planner.dataset())

    for row in plan:
        result_file(context, row.key).unlink(missing_ok=True)
    deadline = None if a.hours is None else began + 3600 * a.hours
    left = run_jobs(jobs_of(context, plan), cores, deadline, ended, say)
    print(write_page(context, results, planner.dataset()))
    if left:
        again = "the same command" + (" without --fresh" if a.fresh else "")
        print(f"stopped after {a.hours:g} hours; {again} continues. Left:")
        print(table_of(planner.of(left, results), results, sets))
    if failed:
        raise UserError(f"{len(failed)} of {len(a.only)} rows were not run, see above: {[*failed]}")


if __name__ == "__main__":
    run_command(COMMANDS["experiments.reproduce"], main)
