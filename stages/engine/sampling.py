"""What every model's sampler shares: batches of one size, keys instead of generators, places for what has none."""

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

Draw = Callable[..., Tensor]


class Sampler(Protocol):
    """A condition and a key for each sample -> pictures. A sample depends on its key, not on its batch."""

    takes_places: bool  # else it looks at the objects alone

    def sample(self, condition: Condition, keys: list[tuple], how: Eval) -> Tensor:
        """n conditions, n keys -> (n, 3, 64, 64) in [-1, 1]."""


def takes_places(network: nn.Module) -> bool:
    """True for a network that is told where objects stand."""
    return getattr(network, "places", False)


def without_places(condition: Condition) -> Condition:
    """The same objects, their places not known: the program chooses."""
    return condition.only_placed(torch.zeros(len(condition), dtype=torch.bool, device=condition.device))


def with_chosen_places(condition: Condition, keys: list[tuple], layouts: LayoutPrior, how: Eval) -> Condition:
    """Every object at a place: those without one where a training layout has some, by the sample's key.

    `how.places` may say that unknown places stay unknown.
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

    draw(*shape) gives noise (batch, *shape), each row from its own key. The last batch is padded to the same size and
    only its first `wanted` rows count: the same arithmetic whatever else is asked for.
    """
    pictures = []
    for first in range(0, len(condition), batch):
        part = condition[first : first + batch]
        missing = batch - len(part)
        padded = joined([part, part[:1].repeat(missing)]).to(device)
        generators = [sample_generator(*key) for key in keys[first : first + batch]]

        def draw(*shape: int, generators: list = generators, missing: int = missing) -> Tensor:
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
    for name, condition in dataset.test_sets.items():
        images = sampler.sample(condition, [("preview", name, i) for i in range(len(condition))], how)
        metrics[f"accuracy_{name}"] = accuracy(images, condition.labels)
        pictures[name] = grid(images)
    return metrics, pictures
