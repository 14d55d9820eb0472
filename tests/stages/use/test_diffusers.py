"""Why docs/exports.md has no converter to diffusers' networks: no weights of their upsampling give ours."""

import pytest
import torch

from models.blocks import Upsample


def columns(module, x):
    """The output on x for each weight of a linear layer alone, the others zero: (weights, values)."""
    found = []
    for parameter in module.parameters():
        for i in range(parameter.numel()):
            with torch.no_grad():
                for every in module.parameters():
                    every.zero_()
                parameter.view(-1)[i] = 1.0
                found.append(module(x).flatten())
    return torch.stack(found)


def test_no_weights_of_diffusers_upsampling_give_ours():
    upsampling = pytest.importorskip("diffusers.models.upsampling", reason="diffusers is of the extra `bench`")
    torch.manual_seed(0)
    x, ours = torch.randn(3, 2, 4, 4), Upsample(2, 2)
    torch.nn.init.normal_(ours.conv.weight)
    expected = ours(x).detach().flatten()
    theirs = columns(upsampling.Upsample2D(2, use_conv=True), x)
    best = torch.linalg.lstsq(theirs.T, expected[:, None]).solution
    missed = (expected - (theirs.T @ best)[:, 0]).norm() / expected.norm()
    assert missed > 0.5
    own = columns(Upsample(2, 2), x)  # the same search finds ours
    best = torch.linalg.lstsq(own.T, expected[:, None]).solution
    assert (expected - (own.T @ best)[:, 0]).norm() / expected.norm() < 1e-5
