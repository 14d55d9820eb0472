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


def precision_and_recall(real: Tensor, made: Tensor, k: int = 3) -> tuple[float, float]:
    """Returns precision and recall of features (n, d) and (m, d) (arXiv 1904.06991, section 2), in [0, 1].

    A sample is taken to be of the other set's distribution if it is within the distance of one of that set's members
    to its k-th nearest neighbour in the set. Precision is the share of `made` within `real`, and recall the share of
    `real` within `made`. They depend on n and m: compare only figures over the same numbers, both above k.
    """
    between = torch.cdist(real.double(), made.double())
    precision = (between <= _radii(real, k)[:, None]).any(dim=0)
    recall = (between <= _radii(made, k)[None, :]).any(dim=1)
    return precision.double().mean().item(), recall.double().mean().item()


def coverage(real: Tensor, made: Tensor, k: int = 5) -> float:
    """Returns the share of `real` (n, d) that has one of `made` (m, d) within its k-th neighbour's distance.

    Coverage of arXiv 2002.09797 (eq. 4), in [0, 1]. Its balls are around real samples only, so that an outlier among
    `made` covers nothing, as it does in recall.
    """
    between = torch.cdist(real.double(), made.double())
    return (between <= _radii(real, k)[:, None]).any(dim=1).double().mean().item()


def _radii(features: Tensor, k: int) -> Tensor:
    """Returns each sample's distance to its k-th nearest neighbour among the others: (n, d) -> (n,), n above k."""
    distances = torch.cdist(features.double(), features.double()).fill_diagonal_(torch.inf)
    return distances.kthvalue(k, dim=1).values
