"""What a model can do, for a page that offers several side by side."""

from dataclasses import dataclass

from models.samplers import SAMPLERS
from stages.diffusion import DiffusionSampler
from stages.engine.sampling import Sampler
from stages.engine.schema import Config
from stages.models import title


@dataclass(frozen=True)
class Facts:
    """What a model of an experiment can do.

    `title`: its name for people. `takes_places`: whether it reads places. `steps`: its sampling steps by default; None
    for a model of one step. `most_steps`: the most that can be asked for; None if their number is fixed. `guidance`: by
    default; None if it has none.
    """

    title: str
    takes_places: bool
    steps: int | None = None
    most_steps: int | None = None
    guidance: float | None = None


def facts_of(model: str, sampler: Sampler, config: Config) -> Facts:
    """Returns what a loaded model can do, with the configuration's steps and guidance."""
    if not isinstance(sampler, DiffusionSampler):
        return Facts(title(model, config), sampler.takes_places)
    steps = len(sampler.times(config.eval))
    most = None if SAMPLERS[config.eval.sampler].every_timestep else len(sampler.diffusion)
    guidance = config.eval.guidance if sampler.knows_no_labels else None
    return Facts(title(model, config), sampler.takes_places, steps, most, guidance)
