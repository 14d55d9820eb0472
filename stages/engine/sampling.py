"""Shared by all samplers: batches of one size, keys instead of generators, places for objects without one."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from models.condition import Condition, joined
from models.layouts import LayoutPrior
from stages.engine.dataset import Dataset
from stages.engine.draws import sample_generator
from stages.engine.pictures import grid
from stages.engine.schema import Eval
from stages.engine.transfer import sent

Draw = Callable[..., Tensor]


class Sampler(Protocol):
    """Draws a picture for each condition and key. A sample depends on its key, not on its batch."""

    @property
    def takes_places(self) -> bool:
        """Whether it reads places, or the objects alone."""

    def sample(self, condition: Condition, keys: list[tuple], how: Eval) -> Tensor:
        """Draws (n, 3, s, s) in [-1, 1] from n conditions and n keys."""


def takes_places(network: nn.Module) -> bool:
    """Returns True if the network reads the objects' places."""
    return getattr(network, "places", False)


def without_places(condition: Condition) -> Condition:
    """Returns the same objects with unknown places: the program chooses them."""
    return condition.only_placed(torch.zeros(len(condition), dtype=torch.bool, device=condition.device))


def with_chosen_places(condition: Condition, keys: list[tuple], layouts: LayoutPrior, how: Eval) -> Condition:
    """Gives each object without a place one from a training layout, which the sample's key chooses.

    With `how.places` "unknown", unknown places stay unknown.
    """
    if how.places == "unknown":
        return condition
    return layouts.complete(condition, [sample_generator(*key, "layout") for key in keys])


def in_batches(
    condition: Condition,
    keys: list[tuple],
    batch: int,
    device: torch.device,
    make: Callable[[Condition, Draw, int], Tensor],
) -> Tensor:
    """Calls make(condition of `batch` rows, draw, wanted) -> pictures for `batch` samples at a time, and joins them.

    draw(*shape) gives noise (batch, *shape), each row from that sample's key. The last batch is padded to the same size
    and only its first `wanted` rows count, so that a sample's arithmetic does not depend on the number of samples.
    """
    pictures = []
    for first in range(0, len(condition), batch):
        part = condition[first : first + batch]
        missing = batch - len(part)
        padded = joined([part, part[:1].repeat(missing)]).moved(lambda values: sent(values, device))
        generators = [sample_generator(*key) for key in keys[first : first + batch]]

        def draw(*shape: int, generators: list = generators, missing: int = missing) -> Tensor:
            rows = [torch.randn(shape, generator=g) for g in generators]
            return sent(torch.stack(rows + [torch.zeros(shape)] * missing), device)

        pictures.append(make(padded, draw, len(part))[: len(part)])
    return torch.cat(pictures)


def preview(
    sampler: Sampler, dataset: Dataset, accuracy: Callable[[Tensor, Tensor], float], how: Eval
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Returns the accuracy on each test set, and the pictures, to follow training: the evaluation uses other seeds.

    `accuracy` is called with pictures and their labels.
    """
    metrics, pictures = {}, {}
    for name, condition in dataset.test_sets.items():
        images = sampler.sample(condition, [("preview", name, i) for i in range(len(condition))], how)
        metrics[f"accuracy_{name}"] = accuracy(images, condition.labels)
        pictures[name] = grid(images)
    return metrics, pictures
