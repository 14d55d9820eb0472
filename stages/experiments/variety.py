"""Measures how much pictures of the same label set differ, a model's beside real ones. Used by `make compare`.

Several real pictures of one label set are rare: mostly they show one object, and each name has hundreds. A model is
asked for exactly what these pictures show, so that both figures cover the same label sets and layouts.
"""

import torch
from torch import Tensor

from data.images import to_unit
from models.condition import Condition
from models.distances import mean_distance, mean_pairwise_distance
from models.layouts import evenly
from stages.engine.command import Context
from stages.engine.dataset import Dataset
from stages.engine.sampling import Sampler

SETS, FEWEST, MOST = 4, 8, 16  # label sets, and real pictures of each
PAIRS = 64  # of real pictures, each object within a pixel of the same one in the other


def _by_label_set(conditions: Condition) -> list[Tensor]:
    """Returns the indices of each label set's pictures whose places are all known; only sets with two or more."""
    rows = conditions.wholly_placed.nonzero()[:, 0]
    if not len(rows):
        return []
    _, group, counts = conditions[rows].labels.unique(dim=0, return_inverse=True, return_counts=True)
    parts = rows[group.argsort(stable=True)].split(counts.tolist())
    return [part for part in parts if len(part) > 1]


def of_one_label_set(conditions: Condition) -> list[Tensor]:
    """Returns up to 16 picture indices for each of four label sets with 8 pictures or more; most objects first."""
    sizes = conditions.present.sum(1)
    many = [part for part in _by_label_set(conditions) if len(part) >= FEWEST]
    many.sort(key=lambda part: (-int(sizes[part[0]]), -len(part)))
    return [part[evenly(len(part), MOST)] for part in many[:SETS]]


def of_one_layout(conditions: Condition, size: int) -> Tensor:
    """Returns up to 64 pairs (p, 2) of pictures of one label set whose objects are within a pixel of each other.

    `size`: the pictures' side in pixels.
    """
    found = []
    for part in _by_label_set(conditions):
        order = conditions.objects[part].argsort(dim=1)  # their lists may be in any order
        places = conditions.places[part].gather(1, order[..., None].expand(-1, -1, 2)).flatten(1)
        close = torch.cdist(places, places, p=torch.inf) <= 1 / size
        found.append(part[close.triu(1).nonzero()])
    pairs = torch.cat(found) if found else torch.zeros(0, 2, dtype=torch.int64)
    return pairs[evenly(len(pairs), PAIRS)]


def variety_of_real(dataset: Dataset) -> dict[str, float | None]:
    """Returns the mean pixel distance between real pictures of one label set: at one layout, and over layouts."""
    every = dataset.conditions.to("cpu")
    pairs = of_one_layout(every, dataset.size)

    def real(rows: Tensor) -> Tensor:
        return to_unit(dataset.images[rows.to(dataset.images.device)]).cpu()

    over = [mean_pairwise_distance(real(rows)) for rows in of_one_label_set(every)]
    return _figures(mean_distance(real(pairs[:, 0]), real(pairs[:, 1])) if len(pairs) else None, over)


def variety(sampler: Sampler, dataset: Dataset, context: Context) -> dict[str, float | None]:
    """Measures the same for a model asked for what those real pictures show; at one layout only if it takes places."""
    every, how = dataset.conditions.to("cpu"), context.config.eval

    def made(rows: Tensor, name: str) -> Tensor:
        keys = [(how.seeds[0], "variety", name, i) for i in range(len(rows))]
        return sampler.sample(every[rows], keys, how).cpu()

    pairs = of_one_layout(every, dataset.size)
    one = None
    if sampler.takes_places and len(pairs):
        one = mean_distance(made(pairs[:, 0], "first"), made(pairs[:, 1], "second"))
    over = [mean_pairwise_distance(made(rows, f"set {i}")) for i, rows in enumerate(of_one_label_set(every))]
    return _figures(one, over)


def _figures(one_layout: float | None, over: list[float]) -> dict[str, float | None]:
    return {"one_layout": one_layout, "over_layouts": sum(over) / len(over) if over else None}
