import pytest
import torch
from torch import nn

from stages.engine.ema import Ema


def test_closed_form_after_the_warm_up():
    """With an average of 0 at first and weights of 1, the average after n steps of decay d is 1 - d^n."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    ema = Ema(network, 0.9)
    nn.init.ones_(network.weight)
    for _ in range(20):
        ema.update(10**6)  # far from the warm-up
    assert ema.average.weight.item() == pytest.approx(1 - 0.9**20, rel=1e-5)


def test_the_warm_up_forgets_the_start():
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    ema = Ema(network, 0.9999)
    nn.init.ones_(network.weight)
    ema.update(0)
    assert ema.average.weight.item() == pytest.approx(0.9)


def test_buffers_are_copied():
    network = nn.BatchNorm1d(2)
    ema = Ema(network, 0.999)
    network(torch.randn(8, 2))
    ema.update(0)
    assert torch.equal(ema.average.running_mean, network.running_mean)
    assert ema.average.num_batches_tracked == 1
