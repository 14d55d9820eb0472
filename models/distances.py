"""Distances between pictures: how close they are to real ones, and how different from each other."""

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Returns the Frechet distance of features (n, d) and (m, d) (arXiv 1706.08500, eq. 6), computed in float64.

    It is |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)). Fewer pictures make it larger: compare only figures over
    the same number.
    """
    a, b = a.double(), b.double()
    mean = (a.mean(0) - b.mean(0)).square().sum()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # the eigenvalues of S_a S_b are those of the symmetric S_a^(1/2) S_b S_a^(1/2)
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return (mean + cov_a.trace() + cov_b.trace() - 2 * cross).item()


def mean_distance(a: Tensor, b: Tensor) -> float:
    """Returns the root mean squared pixel difference between each picture of a (n, ...) and of b, averaged over n."""
    return (a.double() - b.double()).flatten(1).square().mean(dim=1).sqrt().mean().item()


def mean_pairwise_distance(pictures: Tensor) -> float:
    """Returns the root mean squared pixel difference, averaged over all pairs of (n, ...), n at least 2.

    It measures diversity without a network.
    """
    flat = pictures.flatten(1).double()
    distances = torch.cdist(flat, flat) / flat.shape[1] ** 0.5
    n = len(flat)
    return (distances.sum() / (n * (n - 1))).item()
