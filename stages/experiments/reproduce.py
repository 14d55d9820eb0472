"""`make reproduce`: every system and choice of the reports, run where it is missing, beside the reports' figures."""

import argparse
import json
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from models.adversarial import LOSSES
from models.diffusion import SCHEDULES
from models.samplers import SPACINGS
from models.wgan import BODIES, CRITIC_CONDITIONS, GENERATOR_CONDITIONS
from stages.engine.checkpoint import read_about
from stages.engine.command import Context, add_fresh, command
from stages.engine.errors import UserError
from stages.engine.lock import locked
from stages.engine.log import say
from stages.engine.report.page import Page
from stages.engine.schema import Config
from stages.evaluate import main as evaluate
from stages.evaluator import main as train_evaluator
from stages.experiments.ablations import MULTIPLY_ADD, OF_X0, SIMPLE, TOLD, lacks, paths, section_of, unweighted
from stages.judged import shown
from stages.systems import TRAIN

GUIDED = "eval.classifier_guidance=2.0"
PATCHES = "configs/ddpm-patches.yaml"
COSINE = ("ddpm.schedule=beta-cosine", "ddpm.timesteps=500")


@dataclass(frozen=True)
class System:
    """A row: what it is, the model that is trained, what differs from the experiment, the report's (test, new_test).

    `budget`: the report's own. `recipe`: the configuration whose section of the model, sampler and guidance this row
    takes, whatever the experiment has. An experiment without a ddpm section is lent that of MULTIPLY_ADD.
    """

    words: str
    model: str
    changes: tuple[str, ...] = ()
    reported: tuple[float, float] | None = None
    budget: str | None = None
    recipe: str | None = None


# GANs that are told the label set alone, as the reports have them
POOLED = ("gan.generator.entry=vector", "gan.critic.read=pooled")
# those on a map of places, with what these need
MAP = ("gan.generator.entry=map", "gan.generator.condition=modulation", "gan.attention=false")
READ = (
    *("gan.critic.read=places", "gan.critic.condition=projection+auxiliary"),
    *("gan.critic.pool=sum", "gan.attention=false"),
)


def _choices(model: str, key: str, values: Iterable[str], words: str, *more: str) -> dict[str, System]:
    """A row for each value of a key; `more` is changed in all of them."""
    short = key.replace(".", "-").replace("_", "-")
    return {f"{model}-{short}-{v}": System(f"{words}: {v}", model, (f"{model}.{key}={v}", *more)) for v in values}


def _pixels(words: str, *changes: str) -> System:
    return System(f"pixel DDPM, {words}", "ddpm", changes)


IN_PIXELS = "267,328 steps of 32"
SYSTEMS: dict[str, System] = {
    "ldm": System("latent diffusion", "ldm", (), (0.819, 0.821), budget="534,656 steps of 32"),
    "ldm-guided": System(
        "the same, classifier guidance through the decoder", "ldm", (GUIDED,), (0.75, 0.78), budget="the same"
    ),
    "gan": System("WGAN-GP", "gan", (), (0.527, 0.678), budget="26,733 steps, 5 of the critic each, of 64"),
    "gan-auxiliary": System(
        "auxiliary-classifier WGAN-GP",
        "gan",
        (*POOLED, "gan.critic.condition=auxiliary", "gan.auxiliary_schedule=rising"),
        (0.972, 0.845),
        budget="not said",
    ),
    "ddpm-multiply-add": System(
        "pixel DDPM, multiply-add", "ddpm", paths("up+down"), (0.653, 0.726), f"{IN_PIXELS}, width 256"
    ),
    "ddpm-up": System("conditions on its up path", "ddpm", paths("up"), (0.631, 0.678), f"{IN_PIXELS}, width 256"),
    "ddpm-cosine": System("pixel DDPM, T = 500, beta-cosine", "ddpm", COSINE, (0.931, 0.810), "not said"),
    "ddpm-places": _pixels("multiply-add, told the places", "ddpm.network=multiply-add", "ddpm.places=true"),
    "ddpm-patches": System("pixel DDPM on 8x8 patches, told order and places", "ddpm", recipe=PATCHES),
    "gan-placed": System("WGAN-GP on a map of places", "gan", (*MAP, *READ)),
    "gan-placed-generator": System("its generator alone", "gan", (*MAP, POOLED[1])),
    "gan-placed-critic": System("its critic alone", "gan", (POOLED[0], *READ)),
    **_choices("gan", "loss", LOSSES, "adversarial loss", *POOLED),
    **_choices("gan", "critic.condition", CRITIC_CONDITIONS, "critic's condition", *POOLED),
    **_choices("gan", "generator.condition", GENERATOR_CONDITIONS, "generator's condition", *POOLED),
    **_choices("gan", "body", BODIES, "body", *POOLED),
    "gan-attention": System("self-attention", "gan", (*POOLED, "gan.attention=true")),
    **{
        f"ldm-told-{name.replace(' ', '-')}": System(f"the LDM is told: {name}", "ldm", changes)
        for name, changes in TOLD.items()
    },
    **_choices("ldm", "prediction", OF_X0, "prediction", *SIMPLE),
    **_choices("ldm", "prediction", ("mean",), "prediction", *SIMPLE, "eval.sampler=ancestral"),
    "ldm-bound": System(
        "prediction: noise, the bound's weights", "ldm", ("ldm.prediction=noise", "ldm.bound=true", "ldm.log_snr=null")
    ),
    **_choices("ldm", "schedule", SCHEDULES, "schedule"),
    "ldm-zero-terminal-snr": System(
        "linear schedule, zero terminal SNR",
        "ldm",
        ("ldm.schedule=linear", "ldm.zero_terminal_snr=true", "ldm.prediction=v", *SIMPLE),
    ),
    **_choices("ddpm", "prediction", OF_X0, "pixel DDPM, prediction", *unweighted("ddpm")),
    **_choices(
        "ddpm", "prediction", ("mean",), "pixel DDPM, prediction", *unweighted("ddpm"), "eval.sampler=ancestral"
    ),
    **_choices("ddpm", "schedule", SCHEDULES, "pixel DDPM, schedule"),
    "ddpm-bound": _pixels("the bound's weights", "ddpm.prediction=noise", "ddpm.bound=true", "ddpm.log_snr=null"),
    "ddpm-ddim": _pixels("sampler: DDIM", "eval.sampler=ddim"),
    "ddpm-classifier-free": _pixels("classifier-free guidance", "ddpm.label_dropout=0.1", "eval.guidance=3.0"),
    "ddpm-classifier": _pixels("classifier guidance", GUIDED),
    "ldm-unguided": System("without guidance", "ldm", ("eval.guidance=1.0", "eval.classifier_guidance=0.0")),
    "ldm-classifier": System(
        "classifier guidance alone, DDIM (algorithm 2)", "ldm", (GUIDED, "eval.guidance=1.0", "eval.sampler=ddim")
    ),
    "ldm-classifier-ancestral": System(
        "classifier guidance alone, DDPM (algorithm 1)", "ldm", (GUIDED, "eval.guidance=1.0", "eval.sampler=ancestral")
    ),
    "ldm-ancestral": System("sampler: DDPM", "ldm", ("eval.sampler=ancestral",)),
    **{
        f"ldm-ddim-{spacing}": System(
            f"sampler: DDIM, {spacing}", "ldm", ("eval.sampler=ddim", f"eval.spacing={spacing}")
        )
        for spacing in SPACINGS
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    rows = f"rows to run (default: all): {', '.join(SYSTEMS)}"
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="SYSTEM", help=rows)
    parser.add_argument("--steps", type=int, help="at most so many steps a training (default: the configurations')")
    add_fresh(parser)


def asked_of(context: Context, system: System) -> list[str]:
    """What the command line says of the model and its evaluation."""
    return [o for o in context.arguments.overrides if o.startswith((f"{system.model}.", "eval."))]


def recipe_of(context: Context, system: System) -> str | None:
    """The other configuration that a row's section is taken from; None where it is the experiment's own."""
    return system.recipe or (MULTIPLY_ADD if lacks(context, system.model) else None)


def changes_of(context: Context, key: str) -> list[str]:
    """What a row changes in the experiment: a section it lacks, what the command line says, what makes it that row."""
    a, system = context.arguments, SYSTEMS[key]
    lent = recipe_of(context, system)
    changes = section_of(lent, system.model) if lent else []
    changes += [*asked_of(context, system), *system.changes, f"models=[{system.model}]"]
    changes.append(f"reported={json.dumps({system.model: system.reported} if system.reported else {})}")
    if GUIDED in system.changes:  # a stranger to the judge, though the judge be the lab's
        changes.append(f"uses.guide={context.config.name}-guide")
    if a.steps is None:
        return changes
    section = getattr(context.derived(named(context, key), *changes).config, system.model)
    if section.steps > a.steps:
        changes += [f"{system.model}.steps={a.steps}", f"{system.model}.warmup={min(section.warmup, a.steps // 8)}"]
    return changes


def named(context: Context, key: str) -> str:
    """The experiment that a row is evaluated in."""
    return f"{context.config.name}-{key.replace('+', '-')}"


def homes_of(context: Context) -> dict[str, Context]:
    """The experiment that each row's model is trained in: the first with its section, so that none is learned twice.

    Where it is the experiment's own section, that is the experiment itself; --fresh leaves it alone.
    """
    itself = replace(context, arguments=argparse.Namespace(**vars(context.arguments) | {"fresh": False}))
    learned: dict[str, list[tuple[object, Context]]] = {m: [(getattr(context.config, m), itself)] for m in TRAIN}
    homes = {}
    for key, system in SYSTEMS.items():
        try:
            row = context.derived(named(context, key), *changes_of(context, key))
        except UserError:  # said of that row where it is run
            continue
        section = getattr(row.config, system.model)
        alike = [home for other, home in learned[system.model] if other == section]
        learned[system.model].append((section, row))
        homes[key] = alike[0] if alike else row
    return homes


def told_of(config: Config, model: str) -> str:
    """What a row's model knows that the reports' did not, in words."""
    if not config.places_of(model):
        return ""
    places = "chosen by the program" if config.eval.places == "chosen" else "left open"
    return f" (trained with places; asked by labels only, places {places})"


def run(context: Context, key: str, homes: dict[str, Context]) -> dict:
    """Trains and evaluates what is missing of a row. Returns what the page shows of it."""
    system, name = SYSTEMS[key], named(context, key)
    row = context.derived(name, *changes_of(context, key))
    if (home := homes[key]).config.name != name:
        lender = home.config.uses.get(system.model, home.config.name)
        row = context.derived(name, *changes_of(context, key), f"uses.{system.model}={lender}")
    if GUIDED in system.changes:
        other = ("uses={}", f"seed={context.config.seed + 1}", "evaluator.checkpoint=null")
        train_evaluator(context.derived(f"{context.config.name}-guide", *other))
    TRAIN[system.model](replace(home, began=time.perf_counter()))
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
    """What makes one row again."""
    a = context.arguments
    steps = ["--steps", str(a.steps)] if a.steps else []
    words = ["-m", "stages.experiments.reproduce", "--config", a.config, *steps, "--only", key, "--", *a.overrides]
    return f".venv/bin/python {shlex.join(words)}"


def missing(key: str, fault: str, command: str | None = None) -> dict:
    """What the page shows of a row that has no figures. One that nobody asked for has no command either."""
    system = SYSTEMS[key]
    return {
        "system": system.words,
        "reported": system.reported,
        "fault": fault,
        "command": command,
    }


def how_of(result: dict) -> str | None:
    """A row's configuration and what is changed in it."""
    return ", ".join([*filter(None, [result.get("configuration")]), *result.get("settings", [])]) or None


def judged_on(result: dict) -> str:
    """Where a row was trained, and by whom it was judged."""
    return f"{result['device']}, {result['judge']} evaluator"


def row_of(key: str, result: dict, alike: bool) -> list:
    """A table row; a guide's own accuracy stands behind the judge's. `alike`: device and judge are all rows'."""

    def with_guide(figures: dict) -> str:
        guide = figures.get("accuracy_by_the_guide")
        return shown(figures) + (f" (guide {guide:.3f})" if guide else "")

    reported = [*(result["reported"] or [None, None]), SYSTEMS[key].budget]
    if "fault" in result:
        return [result["system"], *reported, result["fault"], None, None]
    budget = f"{result['steps']:,} steps, {result['minutes']:.1f} min" + ("" if alike else f", {judged_on(result)}")
    ours = [with_guide(result["figures"][part]) for part in ("test", "new_test")]
    return [result["system"], *reported, *ours, budget]


def write_page(context: Context, results: dict[str, dict]) -> Path:
    """The page of all rows, those that this command and earlier ones ran and those still to be run."""
    rows = {key: results.get(key) or missing(key, "not run yet") for key in SYSTEMS}
    where = {judged_on(result) for result in results.values() if "figures" in result}
    page = Page(
        "The reports' systems, side by side",
        "Ours: mean ± deviation over the sampling seeds of one training, five unless report.json says other, fixed "
        f"before the run; {' or '.join(sorted(where)) or 'none yet'}. The reports' figures are their best epoch, "
        "mostly, by the lab's evaluator. A budget is the model's own training; autoencoder and evaluator are the "
        "experiment's. Where ours falls short, compare the budgets first. The reports' models knew label sets alone; "
        "a row of ours that was trained with places says so.",
    )
    head = ["", "report: test", "new_test", "its budget", "ours: test", "new_test", "our budget"]
    page.add_table("Systems", head, [row_of(key, row, len(where) < 2) for key, row in rows.items()])
    again = [[row["system"], how_of(row), row["command"]] for row in rows.values()]
    page.add_table("What a row is, and what makes it again", ["", "configuration", "command"], again)
    return page.write(Path(context.config.root) / "reproduce", results)


def main(context: Context) -> None:
    if context.arguments.steps is not None and context.arguments.steps < 1:
        raise UserError(f"--steps {context.arguments.steps}: take at least one")
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
        except UserError as error:  # one row's fault is not the others'
            say(f"warning: {key}: {error}")
            failed.append(key)
            if "figures" not in results.get(key, {}):  # a row keeps what it has
                results[key] = missing(key, f"not run: {error}", command_of(context, key))
        path = write_page(context, results)
    print(path)
    if failed:
        raise UserError(f"{len(failed)} of {len(context.arguments.only)} rows were not run, as said above: {failed}")


if __name__ == "__main__":
    command("Runs every system of the reports and sets them side by side.", main, add_arguments, alone=True)
