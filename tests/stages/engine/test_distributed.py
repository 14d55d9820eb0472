"""Tests the arithmetic that processes share in a single process, without the transport."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from models.evaluator import Evaluator
from stages.engine import distributed


def gradients(network, images, labels):
    """Returns the gradients of binary cross-entropy by parameter name, in float64."""
    F.binary_cross_entropy_with_logits(network.logits(images), labels).backward()
    return {name: p.grad.double() for name, p in network.named_parameters()}


def test_batch_norm_over_processes_has_the_gradient_that_float64_has(monkeypatch):
    monkeypatch.setattr(distributed, "all_reduce", lambda values: values)
    torch.manual_seed(0)
    network, images = Evaluator(24).train(), torch.rand(8, 3, 32, 32) * 2 - 1
    labels = (torch.rand(8, 24) < 0.1).float()
    exact = gradients(copy.deepcopy(network).double(), images.double(), labels.double())
    with monkeypatch.context() as under_torchrun:
        under_torchrun.setattr(distributed.dist, "is_initialized", lambda: True)
        ours = distributed.with_global_batch_norms(copy.deepcopy(network))
    for name, gradient in gradients(ours, images, labels).items():
        assert (gradient - exact[name]).norm() <= 5e-5 * exact[name].norm(), name


def test_rows_are_gathered_from_all_processes_in_their_order(monkeypatch):
    def all_gather(found, mine):
        for process, rows in enumerate(found):
            rows.copy_(mine + 10 * process)

    mine = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert distributed.gathered(mine) is mine
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_gather", all_gather)
    assert distributed.gathered(mine).tolist() == [[1.0, 2.0], [3.0, 4.0], [11.0, 12.0], [13.0, 14.0]]


def test_batch_norm_over_processes_keeps_the_averages_that_torch_keeps(monkeypatch):
    monkeypatch.setattr(distributed, "all_reduce", lambda values: values)
    plain = nn.BatchNorm2d(3)
    with monkeypatch.context() as under_torchrun:
        under_torchrun.setattr(distributed.dist, "is_initialized", lambda: True)
        ours = distributed.with_global_batch_norms(copy.deepcopy(plain))
    for seed in range(3):
        x = 2 + 3 * torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(ours(x), plain(x))
    torch.testing.assert_close(ours.state_dict(), plain.state_dict())
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))
