"""What every model's sampler shares: batches of one size, keys instead of generators, accuracy on the test sets."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from stages.engine.dataset import Dataset
from stages.engine.draws import sample_generator
from stages.engine.pictures import grid
from stages.engine.schema import Eval

Draw = Callable[[], Tensor]


class Sampler(Protocol):
    """Labels and a key for each sample -> pictures. A sample depends on its key, not on its batch."""

    def sample(self, labels: Tensor, keys: list[tuple], how: Eval) -> Tensor:
        """(n, classes) labels, n keys -> (n, 3, 64, 64) in [-1, 1]."""


def in_batches(
    labels: Tensor,
    keys: list[tuple],
    batch: int,
    shape: tuple[int, ...],
    device: torch.device,
    make: Callable[[Tensor, Draw, int], Tensor],
) -> Tensor:
    """Calls make(labels (batch, classes), draw, wanted) -> pictures, for `batch` samples at a time, and joins them.

    draw() gives noise (batch, *shape), each row from its own key. The last batch is padded to the same size and
    only its first `wanted` rows count: the same arithmetic whatever else is asked for.
    """
    pictures = []
    for first in range(0, len(labels), batch):
        part = labels[first : first + batch]
        missing = batch - len(part)
        padded = torch.cat([part, part[:1].expand(missing, -1)]).to(device)
        generators = [sample_generator(*key) for key in keys[first : first + batch]]

        def draw(generators: list = generators, missing: int = missing) -> Tensor:
            rows = [torch.randn(shape, generator=g) for g in generators]
            return torch.stack(rows + [torch.zeros(shape)] * missing).to(device)

        pictures.append(make(padded, draw, len(part))[: len(part)])
    return torch.cat(pictures)


def preview(
    sampler: Sampler, dataset: Dataset, accuracy: Callable[[Tensor, Tensor], float], how: Eval
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Accuracy on both test sets with one seed that the evaluation does not use, and the pictures: a curve, no result.

    `accuracy` is given pictures and their labels.
    """
    metrics, pictures = {}, {}
    for name, labels in dataset.test_sets.items():
        images = sampler.sample(labels, [("preview", name, i) for i in range(len(labels))], how)
        metrics[f"accuracy_{name}"] = accuracy(images, labels)
        pictures[name] = grid(images)
    return metrics, pictures
