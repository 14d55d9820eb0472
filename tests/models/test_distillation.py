"""Distances from a teacher, and the critic that reads its features."""

import pytest
import torch

from models.condition import Condition
from models.distillation import BEND, DISTANCES, FeatureCritic
from models.unet import UNet

CONDITION = Condition.of_lists([[0, 1], [2]], 3, [[(0.2, 0.3), (0.7, 0.5)], [(0.5, 0.5)]])


def network():
    torch.manual_seed(0)
    made = UNet(4, 3, 2, channels=8, multipliers=(1, 2), blocks=2, head_width=8, context=8, places=True)
    for parameter in made.parameters():  # the last layers start at zero
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_is_0_only_from_the_same_and_grows(name):
    a, step = torch.randn(3, 4, 8, 8), torch.full((3, 4, 8, 8), 0.1)
    near, far = (DISTANCES[name](a + n * step, a) for n in (1, 2))
    assert DISTANCES[name](a, a) == pytest.approx(0, abs=1e-7)
    assert 0 < near < far


def test_the_pseudo_huber_distance_is_half_a_square_near_0_and_linear_far_away():
    near, far = torch.tensor([0.01 * BEND]), torch.tensor([100 * BEND])
    zero = torch.zeros(1)
    assert DISTANCES["huber"](near, zero).item() == pytest.approx((near**2 / (2 * BEND)).item(), rel=1e-2)
    assert DISTANCES["huber"](far, zero).item() == pytest.approx((far - BEND).item(), rel=1e-3)


def test_features_are_of_the_levels_on_the_way_down_and_of_the_middle():
    unet, x, t = network(), torch.randn(2, 4, 8, 8), torch.tensor([5, 50])
    seen = []
    for level in unet.down:
        if type(level).__name__ == "Level":
            level.register_forward_hook(lambda module, inputs, output: seen.append(output))
    unet.middle_end.register_forward_hook(lambda module, inputs, output: seen.append(output))
    features = unet.features(x, t, CONDITION)
    assert [f.shape[1] for f in features] == unet.feature_widths == [8, 8, 16, 16, 16]
    assert [f.shape[2] for f in features] == [8, 8, 4, 4, 4]
    for mine, hooked in zip(features, seen, strict=True):
        assert torch.equal(mine, hooked)


def test_the_critic_scores_every_cell_and_tells_where_a_latent_was_changed():
    unet, x, t = network(), torch.randn(2, 4, 8, 8), torch.tensor([5, 50])
    torch.manual_seed(1)
    critic = FeatureCritic(unet.feature_widths, 8)
    changed = x.clone()
    changed[1] += 1
    scores, others = (critic(unet.features(values, t, CONDITION)) for values in (x, changed))
    assert scores.shape == (2, 2 * 64 + 3 * 16)
    assert torch.equal(scores[0], others[0]) and not torch.equal(scores[1], others[1])
