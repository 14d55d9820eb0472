"""Self-conditioning, in training and in sampling, by networks that show what they were given."""

import torch
from torch import nn

from models.diffusion import Diffusion
from models.samplers import sampling_timesteps
from stages.engine.command import Context
from stages.engine.config import load
from stages.engine.denoising import DiffusionSampler, denoising_errors
from tests.conftest import SMOKE

DEVICE = torch.device("cpu")


class Witness(nn.Module):
    """Predicts x_0 as a number that grows with each call, and remembers the estimates it was given."""

    self_condition = True

    def __init__(self):
        super().__init__()
        self.estimates = []

    def forward(self, x, t, labels, keep=None, estimate=None):
        self.estimates.append(None if estimate is None else estimate.clone())
        return torch.full_like(x, float(len(self.estimates)))


def context():
    config = load(SMOKE, ["ldm.prediction=x0", "eval.guidance=2"])
    return Context(config, DEVICE, torch.float32, None, 0.0, None)


def test_half_of_the_rows_are_trained_with_an_estimate():
    network, diffusion = Witness(), Diffusion.create("cosine", 100, "x0", DEVICE)
    x0, t, labels = torch.zeros(4, 6, 8, 8), torch.tensor([10, 30, 60, 90]), torch.zeros(4, 24)
    denoising_errors(context(), network, diffusion, x0, torch.randn_like(x0), t, labels)
    assert network.estimates[0] is None
    means = network.estimates[1].mean(dim=(1, 2, 3))
    assert means.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_each_step_of_sampling_is_given_the_x0_of_the_step_before():
    c, network = context(), Witness()
    sampler = DiffusionSampler(c, "ldm", network, c.config.ldm, (6, 8, 8), lambda x: x)
    how = c.config.eval.model_copy(update={"steps": 4, "batch": 2})
    for _ in range(2):  # a second sampling starts without one
        network.estimates.clear()
        sampler.sample(torch.zeros(2, 24), [(0, i) for i in range(2)], how)
        assert len(network.estimates) == len(sampling_timesteps(sampler.diffusion, 4))
        assert network.estimates[0] is None
        for number, estimate in enumerate(network.estimates[1:], 1):
            assert estimate.shape == (4, 6, 8, 8)  # conditional and unconditional rows
            assert (estimate == number).all()
