"""Gradients of two real processes, averaged while backward runs, are those of one process with the whole batch."""

import copy

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from stages.engine.averaging import GradientAverage, in_buckets


class Net(nn.Module):
    """Five layers: one is used twice, one by some passes only, one by none."""

    def __init__(self):
        super().__init__()
        self.never, self.seldom = nn.Linear(2, 2), nn.Linear(8, 3)
        self.first, self.shared, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x, seldom=False):
        x = self.shared(self.shared(self.first(x)).tanh()).tanh()
        return self.seldom(x) if seldom else self.last(x)


def gradients(network, inputs, average):
    """Two passes, of which the second is the step's last; `average` is told of both ends of it."""
    first, second = inputs.chunk(2)
    (network(first, seldom=True).square().mean() / 2).backward()
    average.begin()
    (network(second).square().mean() / 2).backward()
    early = len(average._sent)  # while backward ran
    average.finish()
    return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}, early


def one_of_two(rank, network, inputs, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    average = GradientAverage(list(network.parameters()), size=100)
    rows = torch.cat([part.chunk(2)[rank] for part in inputs.chunk(2)])
    for _ in range(2):  # nothing of a step is left for the next
        network.zero_grad()
        found, early = gradients(network, rows, average)
    torch.save((found, early), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_gradient_of_one_with_both_parts(tmp_path):
    torch.manual_seed(0)
    network, inputs = Net(), torch.randn(16, 6)
    expected, _ = gradients(copy.deepcopy(network), inputs, GradientAverage([]))
    mp.spawn(one_of_two, (network, inputs, str(tmp_path)), nprocs=2)
    found, early = torch.load(tmp_path / "0.pt")
    assert early == len(
        in_buckets([p for n in ("first", "shared", "last") for p in getattr(network, n).parameters()], 100)
    )
    assert found.keys() == expected.keys() and "never.weight" not in found
    for name, gradient in torch.load(tmp_path / "1.pt")[0].items():
        assert gradient.equal(found[name]), name
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_buckets_begin_with_the_last_parameter_and_are_as_large_as_asked():
    parameters = [torch.zeros(n) for n in (5, 3, 10, 1, 1)]
    assert in_buckets(parameters, 8) == [parameters[:2:-1], [parameters[2]], [parameters[1]], [parameters[0]]]
    assert in_buckets(parameters) == [parameters[::-1]]


def test_one_process_averages_nothing():
    network = Net()
    average = GradientAverage(list(network.parameters()))
    network(torch.randn(2, 6)).sum().backward()
    kept = network.first.weight.grad.clone()
    average.begin()
    average.finish()
    assert network.first.weight.grad.equal(kept)
