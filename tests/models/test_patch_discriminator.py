import pytest
import torch

from models.patch_discriminator import PatchDiscriminator, adaptive_weight


def test_scores_patches():
    assert PatchDiscriminator(8, 3)(torch.randn(2, 3, 64, 64)).shape == (2, 1, 6, 6)


def test_adaptive_weight_is_a_clamped_ratio():
    weight = torch.ones(3, requires_grad=True)
    ratio = adaptive_weight((weight * 2).sum(), (weight * 8).sum(), weight, 1.0)
    assert ratio.item() == pytest.approx(0.25, rel=1e-3)
    assert adaptive_weight((weight * 8).sum(), (weight * 2).sum(), weight, 1.0).item() == 1.0
