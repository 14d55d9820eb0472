"""Says where each row of `make reproduce` is trained and evaluated: its experiment, and the models that it shares."""

import argparse
import json
from dataclasses import replace

from stages.engine.command import Context
from stages.engine.errors import UserError
from stages.engine.schema import Config
from stages.experiments.ablations import asked_of, lacks, section_of
from stages.experiments.systems import GUIDED, LENT, SYSTEMS, TEACHERS, System
from stages.models import MODELS


def recipe_of(context: Context, system: System) -> str | None:
    """Returns the other configuration that a row's section is taken from, or None if it is the experiment's."""
    return system.recipe or (LENT[system.model] if lacks(context, system.model) else None)


def changes_of(context: Context, key: str) -> list[str]:
    """Returns a row's overrides: a section that the experiment lacks, the command line's, and what defines the row."""
    a, system = context.arguments, SYSTEMS[key]
    lent = recipe_of(context, system)
    changes = section_of(lent, system.model) if lent else []
    changes += [*asked_of(context, system.model), *system.changes, f"models=[{system.model}]"]
    changes.append(f"reported={json.dumps({system.model: system.reported} if system.reported else {})}")
    if GUIDED in system.changes:  # another network than the judge, even where the judge is the lab's
        changes.append(f"uses.guide={context.config.name}-guide")
    if a.steps is None and system.longer == 1:
        return changes
    section = getattr(context.derived(named(context, key), *changes).config, system.model)
    steps = round(section.steps * system.longer)
    if a.steps is not None and steps > a.steps:
        steps = a.steps
        changes.append(f"{system.model}.warmup={min(section.warmup, steps // 8)}")
    if steps != section.steps:
        changes.append(f"{system.model}.steps={steps}")
    return changes


def named(context: Context, key: str) -> str:
    """Returns the name of the experiment in which a row is evaluated."""
    return f"{context.config.name}-{key.replace('+', '-')}"


def unrefreshed(context: Context) -> Context:
    """Returns the context without --fresh, which starts rows again but not what they share."""
    return replace(context, arguments=argparse.Namespace(**vars(context.arguments) | {"fresh": False}))


def teacher_of(model: str, homes: dict[str, Context]) -> tuple[str, Context] | None:
    """Returns the model that a distilled one learns from and where that is trained, or None. Raises UserError."""
    if (row := TEACHERS.get(model)) is None:
        return None
    if row not in homes:
        raise UserError(f"the row {row}, which it is distilled from, is not a valid configuration")
    return SYSTEMS[row].model, homes[row]


def taught(model: str, homes: dict[str, Context]) -> list[str]:
    """Returns the override that names the experiment whose model a distilled one learns from."""
    teacher = teacher_of(model, homes)
    return [f"uses.{teacher[0]}={teacher[1].experiment_of(teacher[0])}"] if teacher else []


def _training(context: Context, model: str) -> tuple[object, ...]:
    """Returns what distinguishes a row's training from others: rows that have the same share it."""
    config, row = context.config, TEACHERS.get(model)
    return config.seed, getattr(config, model), row and context.experiment_of(SYSTEMS[row].model)


def homes_of(context: Context) -> dict[str, Context]:
    """Returns where each row's model is trained: the first experiment with its section, so that none is trained twice.

    A row with the experiment's section uses the experiment's model, which --fresh does not touch.
    """
    itself = unrefreshed(context)
    learned: dict[str, list[tuple[object, Context]]] = {m: [(_training(itself, m), itself)] for m in MODELS}
    homes: dict[str, Context] = {}
    for key, system in SYSTEMS.items():
        try:
            row = context.derived(named(context, key), *changes_of(context, key), *taught(system.model, homes))
        except UserError:  # reported when that row is run
            continue
        training = _training(row, system.model)
        alike = [home for other, home in learned[system.model] if other == training]
        learned[system.model].append((training, row))
        homes[key] = alike[0] if alike else row
    return homes


def told_of(config: Config, model: str) -> str:
    """Describes what a row's model, or the one it is distilled from, is told that the reports' models were not."""
    if not config.takes_places(TEACHERS.get(model, model)):
        return ""
    places = "chosen by the program" if config.eval.places == "chosen" else "left open"
    return f" (trained with places; asked by labels only, places {places})"


def row_of(context: Context, key: str, homes: dict[str, Context]) -> Context:
    """Returns the experiment in which a row is evaluated; it uses the model of the row's home.

    Raises UserError for a row without a home: its configuration is not valid.
    """
    system, name = SYSTEMS[key], named(context, key)
    changes = [*changes_of(context, key), *taught(system.model, homes)]
    if key not in homes:
        context.derived(name, *changes)
    if (home := homes[key]).config.name != name:
        changes.append(f"uses.{system.model}={home.experiment_of(system.model)}")
    return context.derived(name, *changes)
