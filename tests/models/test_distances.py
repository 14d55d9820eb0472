import pytest
import torch

from models.distances import frechet_distance, mean_pairwise_distance


def test_frechet_distance_of_gaussians_has_a_closed_form():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200_000, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5])
    b = torch.randn(200_000, 3, generator=generator, dtype=torch.float64) * torch.tensor([2.0, 2.0, 1.0]) + 1
    assert frechet_distance(a, b) == pytest.approx(3 + 1 + 0 + 0.25, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_works_with_fewer_pictures_than_features():
    x = torch.randn(10, 64)
    assert frechet_distance(x, x + 1) == pytest.approx(64, rel=1e-3)


def test_mean_pairwise_distance_by_hand():
    pictures = torch.tensor([[[0.0, 0.0]], [[3.0, 3.0]], [[0.0, 0.0]]])
    assert mean_pairwise_distance(pictures) == pytest.approx(2.0)  # two of three pairs are 3 apart
    assert mean_pairwise_distance(torch.zeros(4, 3, 2, 2)) == 0
