import math

import pytest
import torch

from models.distances import coverage, frechet_distance, mean_pairwise_distance, precision_and_recall


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


def gaussian(seed, n=800, shift=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=generator) * scale + shift


def test_two_samples_of_one_gaussian_are_within_each_other():
    real, made = gaussian(0), gaussian(1)
    precision, recall = precision_and_recall(real, made)
    assert min(precision, recall, coverage(real, made)) > 0.95
    # of k-th neighbours' balls: 1 - (n - 1)! (2n - k - 1)! / ((2n - 1)! (n - k - 1)!), arXiv 2002.09797, eq. 10
    expected = 1 - math.prod((len(real) - 1 - i) / (2 * len(real) - 1 - i) for i in range(5))
    assert coverage(real, made, k=5) == pytest.approx(expected, abs=0.02)
    assert precision_and_recall(real, real) == (1, 1)


def test_a_narrow_model_is_precise_and_recalls_little_and_a_wide_one_the_reverse():
    real, narrow, wide = gaussian(0), gaussian(1, scale=0.3), gaussian(1, scale=4.0)
    precision, recall = precision_and_recall(real, narrow)
    assert precision > 0.97 and recall < 0.55
    precision, recall = precision_and_recall(real, wide)
    assert precision < 0.5 and recall > 0.9
    assert coverage(real, narrow) < 0.5


def test_far_samples_share_nothing_and_an_outlier_covers_nothing():
    real, far = gaussian(0), gaussian(1, shift=50.0)
    assert (*precision_and_recall(real, far), coverage(real, far)) == (0, 0, 0)
    outlier = torch.cat([far, torch.full((1, 2), -1e4)])  # its ball is so large that recall counts everything
    assert precision_and_recall(real, outlier)[1] == 1
    assert coverage(real, outlier) == 0


def test_precision_and_recall_by_hand():
    real, made = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[1.5], [2.5], [20.0]])
    # with k = 1 the real radii are 1, 1, 4, those of made 1, 1, 17.5
    assert precision_and_recall(real, made, k=1) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert coverage(real, made, k=1) == pytest.approx(2 / 3)
