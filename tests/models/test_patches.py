"""The network on patches loses nothing on the way in and out, and undoes the scale of pixels."""

import pytest
import torch

from models.condition import Condition
from models.patches import PATCH, PatchUNet, patch, unpatch

CLASSES = 5
OPTIONS = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "head_width": 8, "context": 16}


def small(**options):
    torch.manual_seed(0)
    return PatchUNet(CLASSES, most=3, bottleneck=12, side=32, **OPTIONS | options)


def learned(**options):
    """Returns a network whose layers that start at zero are not zero."""
    network = small(**options)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def asked(*places):
    return Condition.of_lists([[1, 4]] * 2, CLASSES).with_places(torch.tensor([places] * 2))


def test_patches_are_the_picture():
    pictures = torch.randn(2, 3, 32, 24)
    patches = patch(pictures)
    assert patches.shape == (2, 3 * PATCH**2, 4, 3)
    assert torch.equal(unpatch(patches), pictures)
    for i, j in ((0, 0), (3, 1)):
        there = pictures[:, :, PATCH * i : PATCH * (i + 1), PATCH * j : PATCH * (j + 1)].flatten(1)
        assert torch.equal(patches[:, :, i, j].sort(dim=1).values, there.sort(dim=1).values)


def test_the_scale_is_undone():
    network, pictures = small(), torch.rand(64, 3, 32, 32) * (torch.rand(3, 32, 32) + 0.1) - 0.5
    network.set_scale(pictures.mean(0), pictures.std(0, correction=0))
    x = network.normalised(pictures)
    assert x.mean(0).abs().max() < 1e-4
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(3, 32, 32))
    torch.testing.assert_close(network.pictures(x), pictures, atol=1e-6, rtol=0)
    assert {"mean", "deviation"} <= network.state_dict().keys()


@pytest.mark.parametrize("channels", [16, 24])
def test_it_predicts_pictures_from_pictures_and_everything_learns(channels):
    network = learned(channels=channels, places=True, order=True)
    made = network(torch.randn(2, 3, 32, 32), torch.tensor([0, 9]), asked([0.2, 0.3], [0.8, 0.8]))
    assert (made.shape, made.dtype) == ((2, 3, 32, 32), torch.float32)
    made.square().mean().backward()
    unused = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert unused == {"unet.labels.null", "unet.labels.nowhere"}  # nothing was dropped, every place is known


def test_a_dropped_row_does_not_depend_on_its_condition():
    network, x, t = learned(places=True), torch.randn(2, 3, 32, 32), torch.tensor([3, 3])
    here, there = asked([0.2, 0.3], [0.8, 0.8]), asked([0.6, 0.3], [0.8, 0.1])
    keep = torch.tensor([True, False])
    with torch.no_grad():
        first, second = (network(x, t, c, keep) for c in (here, there))
    assert (first[0] - second[0]).abs().max() > 1e-3
    assert torch.equal(first[1], second[1])


def test_an_estimate_of_zeros_equals_no_estimate():
    network, x, t = learned(self_condition=True), torch.randn(2, 3, 32, 32), torch.tensor([3, 3])
    condition, none = asked([-1.0, -1.0], [-1.0, -1.0]), torch.zeros(2, 3, 32, 32)
    with torch.no_grad():
        without, zeros, other = (network(x, t, condition, None, e) for e in (None, none, none + 1))
    assert torch.equal(without, zeros)
    assert (without - other).abs().max() > 1e-3
