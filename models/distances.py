"""Distances between sets of pictures: how alike they are to real ones, and how unlike one another."""

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of features (n, d) and (m, d) (arXiv 1706.08500, eq. 6).

    In float64. Few pictures make it larger: compare only figures of as many.
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
    """Root mean squared difference of pixels between each picture of a (n, ...) and that of b, averaged over n."""
    return (a.double() - b.double()).flatten(1).square().mean(dim=1).sqrt().mean().item()


def mean_pairwise_distance(pictures: Tensor) -> float:
    """Root mean squared difference of pixels, averaged over all pairs of (n, ...), n at least 2: diversity, and no
    network has a say in it."""
    flat = pictures.flatten(1).double()
    distances = torch.cdist(flat, flat) / flat.shape[1] ** 0.5
    n = len(flat)
    return (distances.sum() / (n * (n - 1))).item()
