"""The choices of a configuration equal the registries, and reading them does not need torch."""

import subprocess
import sys

import pytest

from models import adversarial, choices, diffusion, distillation, perceptual, placed_gan, quantizer, samplers, wgan
from stages.benchmark.bench import ROWS
from stages.benchmark.cell import AXES
from stages.commands import BENCH_ROWS, COMMANDS, GROWTH_AXES
from stages.models import MODELS
from tests.conftest import HERE


@pytest.mark.parametrize(
    ("words", "registry"),
    [
        (choices.MODELS, MODELS),
        (choices.WORDS, ["evaluator", "reader", "vae", *MODELS]),
        (choices.SCHEDULES, diffusion.SCHEDULES),
        (choices.SAMPLERS, samplers.SAMPLERS),
        (choices.EVERY_TIMESTEP, [name for name, sampler in samplers.SAMPLERS.items() if sampler.every_timestep]),
        (choices.SPACINGS, samplers.SPACINGS),
        (choices.QUANTIZERS, quantizer.QUANTIZERS),
        (choices.BACKBONES, perceptual.BACKBONES),
        (choices.DISTANCES, distillation.DISTANCES),
        (choices.LOSSES, adversarial.LOSSES),
        (choices.AUXILIARY_SCHEDULES, adversarial.AUXILIARY_SCHEDULES),
        (choices.BODIES, wgan.BODIES),
        (BENCH_ROWS, [*ROWS, "rates"]),
        (GROWTH_AXES, AXES),
    ],
)
def test_the_choices_equal_the_registry(words, registry):
    assert list(words) == list(registry)


@pytest.mark.parametrize("condition", choices.CRITIC_CONDITIONS)
def test_a_critic_that_reads_at_places_knows_the_conditions_it_names(condition):
    def build():
        return placed_gan.PlacedCritic(24, 6, 8, 8, (8, 8), condition)

    if condition in choices.PLACED_CRITIC_CONDITIONS:
        assert build()
    else:
        with pytest.raises(ValueError, match="projection"):
            build()


def test_every_command_is_in_the_table():
    """Compares modules: a command started with `-m` and not in the table would import torch before `--help`."""
    modules = {
        str(path.relative_to(HERE / "stages").with_suffix("")).replace("/", ".").removesuffix(".__main__")
        for path in (HERE / "stages").rglob("*.py")
        if "run_command(" in path.read_text() and path.parent.name != "engine"
    }
    assert modules == set(COMMANDS)


def test_the_command_line_is_read_without_torch():
    code = (
        "import sys; sys.argv[1:] = ['ldm.steps=700']; import stages.commands as c, stages.engine.arguments as a;"
        "command = c.COMMANDS['ldm']; print(a.read_configuration(command, a.read_arguments(command)).ldm.steps);"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "700\n"), result.stderr
