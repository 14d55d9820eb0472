"""`make reproduce`: every system and choice of the reports, run where it is missing, beside the reports' figures."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from stages.ddpm import main as train_ddpm
from stages.engine.checkpoint import read_about
from stages.engine.command import Context, add_fresh, command
from stages.engine.config import load
from stages.engine.errors import UserError
from stages.engine.log import say
from stages.engine.report.page import Page
from stages.evaluate import main as evaluate
from stages.evaluator import main as train_evaluator
from stages.gan import main as train_gan
from stages.ldm import main as train_ldm

TRAIN = {"ldm": train_ldm, "gan": train_gan, "ddpm": train_ddpm}
GUIDED = "eval.classifier_guidance=2.0"
PLAIN = ("eval.sampler=ancestral", "eval.guidance=1.0")  # the third and second reports' way of sampling
MULTIPLY_ADD, COSINE = "configs/ddpm-multiply-add.yaml", "configs/ddpm-cosine.yaml"


@dataclass(frozen=True)
class System:
    """A row: what it is, the model that is trained, what differs from the experiment, the report's (test, new_test).

    `section_of`: the configuration file whose section of that model is taken instead of the experiment's.
    """

    words: str
    model: str
    changes: tuple[str, ...] = ()
    reported: tuple[float, float] | None = None
    section_of: str | None = None


def _choices(model: str, key: str, values: tuple[str, ...], words: str) -> dict[str, System]:
    return {f"{model}-{value}": System(f"{words}: {value}", model, (f"{model}.{key}={value}",)) for value in values}


SYSTEMS: dict[str, System] = {
    "ldm": System("latent diffusion", "ldm", (), (0.819, 0.821)),
    "ldm-guided": System("the same, classifier guidance through the decoder", "ldm", (GUIDED,), (0.75, 0.78)),
    "gan": System("WGAN-GP", "gan", (), (0.527, 0.678)),
    "gan-auxiliary": System(
        "auxiliary-classifier WGAN-GP",
        "gan",
        ("gan.critic.condition=auxiliary", "gan.auxiliary_schedule=rising"),
        (0.972, 0.845),
    ),
    "ddpm-multiply-add": System("pixel DDPM, multiply-add", "ddpm", PLAIN, (0.653, 0.726), MULTIPLY_ADD),
    "ddpm-up": System("conditions on its up path", "ddpm", ("ddpm.paths=up", *PLAIN), (0.631, 0.678), MULTIPLY_ADD),
    "ddpm-cosine": System("pixel DDPM, T = 500, beta-cosine", "ddpm", PLAIN, (0.931, 0.810), COSINE),
    **_choices("gan", "loss", ("wgan", "hinge", "non-saturating", "lsgan"), "adversarial loss"),
    **_choices("gan", "critic.condition", ("projection", "concatenation"), "critic's condition"),
    **_choices("gan", "generator.condition", ("batch-norm",), "generator's condition"),
    "gan-dcgan": System("DCGAN body", "gan", ("gan.body=dcgan",)),
    "gan-attention": System("self-attention", "gan", ("gan.attention=true",)),
    **_choices("ldm", "prediction", ("mean", "noise", "x0"), "prediction"),
    "ldm-noise-bound": System(
        "prediction: noise, the bound's weights", "ldm", ("ldm.prediction=noise", "ldm.bound=true")
    ),
    **_choices("ldm", "schedule", ("linear", "beta-cosine", "sigmoid"), "schedule"),
    "ldm-zero-terminal-snr": System("zero terminal SNR", "ldm", ("ldm.zero_terminal_snr=true",)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="SYSTEM", help="rows to run"
    )
    parser.add_argument("--steps", type=int, help="at most so many steps a training (default: the configurations')")
    add_fresh(parser)


def variant_of(context: Context, key: str, system: System) -> Context:
    """The experiment of a row. The experiment's own LDM and GAN serve for the rows without a change."""
    changes, cap = list(system.changes), context.arguments.steps
    section = getattr(context.config, system.model)
    if system.section_of:
        section = getattr(load(Path(system.section_of)), system.model)
        changes.insert(0, f"{system.model}={json.dumps(section.model_dump(mode='json'))}")
    asked = [o for o in context.arguments.overrides if o.startswith((f"{system.model}.", "eval."))]
    changes += [o for o in asked if o not in changes]  # the command line has the last word
    if cap is not None and section.steps > cap:
        changes += [f"{system.model}.steps={cap}", f"{system.model}.warmup={min(section.warmup, cap // 8)}"]
    if GUIDED in changes:
        changes += [f"uses.guide={context.config.name}-guide", f"uses.ldm={context.config.name}-ldm"]
    return context.derived(f"{context.config.name}-{key}", *changes, f"models=[{system.model}]")


def run(context: Context, key: str, system: System) -> tuple[dict, dict]:
    """Trains and evaluates what is missing of a row. Returns its figures and its export's `about`."""
    variant = variant_of(context, key, system)
    if GUIDED in system.changes:
        run(context, "ldm", SYSTEMS["ldm"])
        train_evaluator(context.derived(f"{context.config.name}-guide", "uses={}", f"seed={context.config.seed + 1}"))
    TRAIN[system.model](variant)
    evaluate(variant)
    report = json.loads((variant.folder("eval") / "report.json").read_text())
    return report["results"][system.model], read_about(variant.export(system.model), "")


def main(context: Context) -> None:
    if context.arguments.steps is not None and context.arguments.steps < 1:
        raise UserError(f"--steps {context.arguments.steps}: take at least one")
    results, rows = {}, []
    for key in context.arguments.only:
        system = SYSTEMS[key]
        say(f"{context.config.name}/reproduce: {key}, {system.words}")
        figures, about = run(context, key, system)
        results[key] = {"reported": system.reported, "figures": figures, "steps": about["steps"]}
        ours = [f"{figures[n]['accuracy']:.3f} ± {figures[n]['std']:.3f}" for n in ("test", "new_test")]
        reported = [f"{value:.3f}" for value in system.reported or ()] or [None, None]
        budget = f"{about['steps']} steps, {about['seconds'] / 60:.1f} min"
        settings = ", ".join((*((system.section_of,) if system.section_of else ()), *system.changes))
        rows.append([system.words, *reported, *ours, settings or None, budget, command_of(context, key)])
    page = Page(
        f"{context.config.name}: the reports' systems",
        f"Ours: mean ± deviation of the seeds {list(context.config.eval.seeds)}, fixed before the run. The reports' "
        f"figures are their best epoch, mostly, by the lab's evaluator. A budget is the model's own training on "
        f"{about['device']}; autoencoder and evaluator are the experiment's.",
    )
    head = ["", "report: test", "new_test", "ours: test", "new_test", "settings", "budget", "command"]
    page.add_table("Systems", head, rows)
    print(page.write(Path(context.config.root) / "reproduce", results))


def command_of(context: Context, key: str) -> str:
    """What makes one row again."""
    steps = f" --steps {context.arguments.steps}" if context.arguments.steps else ""
    return f"python -m stages.reproduce --config {context.arguments.config}{steps} --only {key}"


if __name__ == "__main__":
    command("Runs every system of the reports and sets them side by side.", main, add_arguments)
