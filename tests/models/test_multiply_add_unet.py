"""The multiply-add U-Net's conditioning formula, map of places and initial weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.condition import Condition
from models.multiply_add_unet import MAP, Embedding, MultiplyAddUNet

CLASSES, TIMESTEPS = 5, 40


def small(paths="up+down", width=8, places=False, stem=1):
    torch.manual_seed(0)
    return MultiplyAddUNet(CLASSES, TIMESTEPS, width, paths, places, stem).eval()


def told(*places):
    """Returns a network whose map of places is not zero, and two rows of objects 1 and 4 at these places."""
    network = small(places=True)
    nn.init.normal_(network.raster.leave.weight)
    return network, at(*places)


def at(*places):
    return Condition.of_lists([[1, 4]] * 2, CLASSES).with_places(torch.tensor([places] * 2))


def maps_of(network, *arguments):
    """Returns each block's input and output in a forward pass: {name: (first input, output)}."""
    seen = {}

    def note(name):
        return lambda module, inputs, output: seen.__setitem__(name, (inputs[0], output))

    for name in ("enter", "down1", "down2", "grow", "up1", "up2"):
        getattr(network, name).register_forward_hook(note(name))
    with torch.no_grad():
        network(*arguments)
    return seen


def test_neighbouring_timesteps_differ_under_autocast():
    embedding = Embedding(1, 64, exact=True)
    times = torch.arange(1000)[:, None] / 1000
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        entered = embedding.body[0](times)
    assert entered.dtype == torch.float32 and len(entered.unique(dim=0)) == 1000


@pytest.mark.parametrize("stem", [1, 4])
@pytest.mark.parametrize(
    ("paths", "conditioned"), [("up", {"up1", "up2"}), ("up+down", {"up1", "up2", "down1", "down2"})]
)
def test_a_blocks_map_is_multiplied_by_the_label_embedding_and_the_time_embedding_is_added(paths, conditioned, stem):
    network, x, t = small(paths, stem=stem), torch.randn(3, 3, 32, 32), torch.tensor([0, 17, 39])
    labels = torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 1, 0, 0, 0]])
    seen = maps_of(network, x, t, Condition.of_labels(labels), torch.tensor([True, True, False]))
    before = {
        "down1": seen["enter"][1],
        "down2": F.max_pool2d(seen["down1"][1], 2),
        "up1": seen["grow"][1],
        "up2": seen["up1"][1],
    }
    kept = torch.cat([labels[:2], torch.zeros(1, CLASSES)])  # a dropped set is all zeros
    assert network.label.keys() == network.time.keys() == conditioned
    for name, plain in before.items():
        expected = plain
        if name in conditioned:
            c, plus = network.label[name](kept), network.time[name](torch.tensor([[0.0], [17 / 40], [39 / 40]]))
            assert c.std() > 0.01 and plus.std() > 0.01  # both have an effect
            expected = c * plain + plus
        torch.testing.assert_close(seen[name][0], expected)


@pytest.mark.parametrize(("stem", "cells"), [(1, 64), (2, 32), (4, 16), (8, 8)])
def test_with_a_stem_the_blocks_work_on_squares_of_pixels(stem, cells):
    network, x = small(stem=stem), torch.randn(2, 3, 64, 64)
    seen = maps_of(network, x, torch.tensor([0, 17]), Condition.of_lists([[1, 4]] * 2, CLASSES))
    assert torch.equal(seen["enter"][0], F.pixel_unshuffle(x, stem))
    assert seen["enter"][1].shape[2:] == (cells, cells)
    assert seen["grow"][0].shape[2:] == (2, 2)  # a 32nd of the picture
    assert network(x, torch.tensor([0, 17]), Condition.of_lists([[1, 4]] * 2, CLASSES)).shape == x.shape


@torch.no_grad()
def test_a_picture_leaves_a_stem_as_it_entered():
    """The last convolution is made to copy the first map: pixels come back in their places."""
    network, x = small(width=48, stem=4), torch.randn(2, 3, 32, 32)
    network.leave = nn.Identity()
    network.enter.forward = lambda cells: cells
    network.up2.forward = lambda x, skip: x[:, :0].new_zeros(len(x), 0, *(2 * side for side in skip.shape[2:]))
    assert torch.equal(network(x, torch.tensor([0, 17]), Condition.of_lists([[1, 4]] * 2, CLASSES)), x)


@pytest.mark.parametrize("stem", [1, 2, 4, 8])
@torch.no_grad()
def test_places_reach_the_blocks_behind_a_stem(stem):
    x, t, network = torch.randn(2, 3, 64, 64), torch.tensor([0, 17]), small(places=True, stem=stem)
    nn.init.normal_(network.raster.leave.weight)
    here, there = (network(x, t, at([0.25, 0.5], [0.75, u])) for u in (0.3, 0.7))
    assert here.shape == x.shape and (here - there).abs().max() > 1e-4


@torch.no_grad()
def test_the_map_of_places_starts_at_zero():
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([0, 17])
    condition = at([0.25, 0.5], [0.75, 0.5])
    assert torch.equal(small(places=True)(x, t, condition), small()(x, t, condition))
    assert not [name for name in small().state_dict() if name.startswith("raster")]  # as older exports have it


@torch.no_grad()
def test_unknown_places_and_dropped_rows_add_nothing_to_the_first_layer():
    x, t, keep = torch.randn(2, 3, 32, 32), torch.tensor([0, 17]), torch.tensor([True, False])
    network, here = told([0.25, 0.5], [0.75, 0.5])
    unknown = at([-1.0, -1.0], [-1.0, -1.0])
    assert torch.equal(network(x, t, unknown), small()(x, t, unknown))
    made, without = network(x, t, here, keep), small()(x, t, here, keep)
    assert torch.equal(made[1], without[1])
    assert (made[0] - without[0]).abs().max() > 1e-4


@torch.no_grad()
def test_a_moved_object_changes_the_map_near_where_it_was_and_is():
    network, before = told([0.25, 0.25], [0.75, 0.25])
    after, keep = at([0.25, 0.25], [0.75, 0.85]), torch.tensor([True, True])
    first, second = (network.raster(c, keep, MAP)[0] for c in (before, after))
    moved = (first - second).abs().amax(0)
    centres = (torch.arange(MAP) + 0.5) / MAP
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    near = torch.zeros(MAP, MAP, dtype=torch.bool)
    for u, v in ((0.75, 0.25), (0.75, 0.85)):
        distance = ((x - u).square() + (y - v).square()).sqrt()
        near |= distance < 5 / MAP
        assert moved[distance < 1 / MAP].min() > 0.1
    assert moved[~near].max() < 1e-6  # exp(-(5 / .8)^2 / 2) = 3e-9


def test_an_embedding_by_hand():
    torch.manual_seed(0)
    embedding = Embedding(2, 3)
    first, _, second = embedding.body
    x = torch.randn(4, 2)
    hidden = x @ first.weight.T + first.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))  # GELU
    expected = hidden @ second.weight.T + second.bias
    assert embedding(x).shape == (4, 3, 1, 1)
    torch.testing.assert_close(embedding(x)[:, :, 0, 0], expected)


@pytest.mark.parametrize(
    ("kinds", "mean"), [((nn.Conv2d, nn.ConvTranspose2d), 0.0), ((nn.BatchNorm2d, nn.GroupNorm), 1.0)]
)
def test_weights_start_like_those_of_dcgan(kinds, mean):
    """Each is within five standard errors of its mean (convolutions 0, norms 1) and of .02; biases are 0."""
    found = [m for m in small(width=16).modules() if isinstance(m, kinds)]
    assert {type(m) for m in found} == set(kinds)
    for module in found:
        weight, error = module.weight.double(), 0.02 / module.weight.numel() ** 0.5
        assert abs(weight.mean() - mean) < 5 * error
        assert abs(weight.std() - 0.02) < 5 * error
        assert not module.bias.any()
