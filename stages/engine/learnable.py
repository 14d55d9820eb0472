"""Finds mistakes by arithmetic: loss weights that teach nothing, sampling that does not start from noise."""

import torch

from models.choices import DIFFUSION
from models.diffusion import Diffusion
from models.samplers import SAMPLERS
from stages.engine.errors import UserError
from stages.engine.schema import Config, Denoising, Eval

WHOLE = 0.9  # share of all loss weights on one timestep from which on only that one is learned
SEEN = 0.02  # abar at the start of sampling from which on the noise it starts from is not what training showed


def diffusion_of(section: Denoising, device: torch.device | str = "cpu") -> Diffusion:
    """Returns the schedule and prediction type of an `ldm` or `ddpm` section."""
    s = section
    return Diffusion.create(s.schedule, s.timesteps, s.prediction, device, s.zero_terminal_snr)


def refuse_unlearnable(config: Config) -> None:
    """Raises UserError for a diffusion section whose loss weights leave nothing to learn."""
    for stage in DIFFUSION:
        section: Denoising | None = getattr(config, stage)
        if section is None:
            continue
        every = torch.arange(section.timesteps)
        weights = diffusion_of(section).loss_weight(every, section.min_snr, section.bound, section.log_snr)
        if weights.sum() == 0 or (len(weights) > 1 and weights.max() > WHOLE * weights.sum()):
            key = "log_snr" if section.log_snr is not None else "min_snr"
            raise UserError(
                f"{stage}.{key}={getattr(section, key)} trains at most one timestep; set another, "
                f"such as log_snr=[-1.0,2.0], or null"
            )


def starts_from_a_picture(config: Config) -> list[str]:
    """Returns a warning for each diffusion model whose sampling starts where training still shows the picture."""
    found, how = [], config.eval
    for stage in DIFFUSION:
        section: Denoising | None = getattr(config, stage)
        if section is not None and stage in config.models:
            left = _at_the_start(section, how)
            if left > SEEN:
                found.append(
                    f"{stage}: sampling starts at a timestep that still shows the picture (abar {left:.2f}); "
                    f"set more {stage}.timesteps than {section.timesteps}, or another {stage}.schedule"
                )
    return found


def _at_the_start(section: Denoising, how: Eval) -> float:
    diffusion = diffusion_of(section)
    times = SAMPLERS[how.sampler].times(diffusion, min(how.steps, len(diffusion)), how.spacing)
    return float(diffusion.alpha_bar[times[0]])
