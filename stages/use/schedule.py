"""A diffusion's schedule as other programs read it: a table of numbers, and the settings of diffusers' scheduler."""

import torch

from models.diffusion import Diffusion
from models.samplers import SAMPLERS, usable_timesteps
from stages.engine.schema import Eval

PREDICTIONS = {"v": "v_prediction", "noise": "epsilon", "x0": "sample"}  # diffusers' words; it has none for `mean`


def table(diffusion: Diffusion, how: Eval) -> dict[str, object]:
    """Returns what DDIM (arXiv 2010.02502, eq. 12) needs, as numbers that fit into JSON.

    `alpha_bar`: abar of each timestep t that sampling may use. `factors`: for each of them [a, b, c, d] with
    x_0 = a x + b prediction and noise = c x + d prediction, whatever the network predicts. `times`: the timesteps of
    the configuration's number of steps, falling. `timesteps`: T, of whose t / T `interval` is a range.

    `steps`: a whole sampling by these, worked out: for each of `times` [t, guidance, p, q, a, b]. The next x is
    p x + q prediction, with the prediction under that guidance.
    """
    usable = usable_timesteps(diffusion)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    factors = []
    for t in range(usable):
        of_x, of_prediction = diffusion.to_x0_and_noise(zero, one, t), diffusion.to_x0_and_noise(one, zero, t)
        factors.append([of_x[0].item(), of_prediction[0].item(), of_x[1].item(), of_prediction[1].item()])
    times = SAMPLERS["ddim"].times(diffusion, min(how.steps, len(diffusion)), how.spacing)
    steps = []
    for now, following in zip(times, [*times[1:], None], strict=True):
        a, b, c, d = factors[now]
        after = 1.0 if following is None else diffusion.alpha_bar[following].item()
        picture, noise = after**0.5, (1 - after) ** 0.5
        guided = how.interval[0] <= (now + 1) / len(diffusion) <= how.interval[1]
        guidance = how.guidance if guided or how.guidance == 0 else 1.0
        steps.append([now, guidance, picture * a + noise * c, picture * b + noise * d, a, b])
    return {
        "timesteps": len(diffusion),
        "times": times,
        "steps": steps,
        "interval": [*how.interval],
        "guidance": how.guidance,
        "alpha_bar": diffusion.alpha_bar[:usable].tolist(),
        "factors": factors,
    }


def diffusers_scheduler(diffusion: Diffusion, how: Eval) -> dict[str, object] | None:
    """Returns the settings of diffusers' DDIMScheduler with this schedule, or None where it would sample otherwise.

    It goes down by T // steps whatever the spacing, so that it agrees with ours only for `trailing`, and it starts at
    T - 1 even if noise prediction must not (`usable_timesteps`).
    """
    usable = usable_timesteps(diffusion) == len(diffusion)
    if diffusion.prediction not in PREDICTIONS or how.spacing != "trailing" or not usable:
        return None
    before = torch.cat([diffusion.alpha_bar.new_ones(1), diffusion.alpha_bar[:-1]])
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": len(diffusion),
        "trained_betas": (1 - diffusion.alpha_bar / before).tolist(),
        "prediction_type": PREDICTIONS[diffusion.prediction],
        "timestep_spacing": "trailing",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
    }
