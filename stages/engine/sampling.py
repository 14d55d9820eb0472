"""Shared by all samplers: batches of one size, keys instead of generators, places and turns that are chosen."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from models.condition import Condition, joined
from models.layouts import LayoutPrior
from stages.engine import distributed
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


def takes_turns(network: nn.Module) -> bool:
    """Returns True if the network reads how the objects are turned."""
    return getattr(network, "turns", False)


def by_names(condition: Condition) -> Condition:
    """Returns the same objects with unknown places and turns, as by a user who names them: the program chooses."""
    return condition.only_placed(torch.zeros(len(condition), dtype=torch.bool, device=condition.device))


def with_chosen_places(condition: Condition, keys: list[tuple], layouts: LayoutPrior, how: Eval) -> Condition:
    """Gives each object without a place one from a training layout, which the sample's key chooses.

    With `how.places` "unknown", unknown places stay unknown. Objects of those layouts are at least `how.apart` apart.
    """
    if how.places == "unknown":
        return condition
    return layouts.apart(how.apart).complete(condition, [sample_generator(*key, "layout") for key in keys])


def with_chosen_turns(condition: Condition, keys: list[tuple], how: Eval) -> Condition:
    """Gives each object whose turn is not known one that the sample's key chooses; all are equally likely.

    With `how.places` "unknown", unknown turns stay unknown.
    """
    if how.places == "unknown":
        return condition
    drawn = [torch.rand(condition.slots, generator=sample_generator(*key, "turns")) for key in keys]
    chosen = torch.stack(drawn).to(condition.device) if drawn else condition.turns
    return condition.with_turns(torch.where(condition.present & ~condition.turned, chosen, condition.turns))


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


def sample_shared(
    sampler: Sampler,
    asked: Sequence[tuple[Condition, list[tuple]]],
    how: Eval,
    size: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Yields the pictures (n, 3, size, size) of each of several conditions with their keys, as `sampler.sample` draws.

    Several processes share them by whole batches, each with the same rows as in one process, so that the pictures are
    the same bit for bit. All processes must call it, and all get all pictures.
    """
    batches = [(i, first) for i, (condition, _) in enumerate(asked) for first in range(0, len(condition), how.batch)]
    world, rank = distributed.world_size(), distributed.rank()
    mine = batches[len(batches) * rank // world : len(batches) * (rank + 1) // world]
    for i, (condition, keys) in enumerate(asked):
        if world == 1:
            yield sampler.sample(condition, keys, how)
            continue
        pictures = torch.zeros(len(condition), 3, size, size, device=device)
        if own := [first for of, first in mine if of == i]:
            rows = slice(own[0], own[-1] + how.batch)
            pictures[rows] = sampler.sample(condition[rows], keys[rows], how)
        yield distributed.total(pictures)  # each picture is from one process, the others hold zeros


def preview(
    sampler: Sampler, dataset: Dataset, accuracy: Callable[[Tensor, Tensor], float], how: Eval
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Returns the accuracy on each test set, and the pictures, to follow training: the evaluation uses other seeds.

    `accuracy` is called with pictures and their labels.
    """
    metrics, pictures, sets = {}, {}, dataset.test_sets
    asked = [(condition, [("preview", name, i) for i in range(len(condition))]) for name, condition in sets.items()]
    drawn = sample_shared(sampler, asked, how, dataset.size, dataset.conditions.device)
    for (name, condition), images in zip(sets.items(), drawn, strict=True):
        metrics[f"accuracy_{name}"] = accuracy(images, condition.labels)
        pictures[name] = grid(images)
    return metrics, pictures
