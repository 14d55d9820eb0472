"""How unlike one another a model's pictures of the same scene are, beside real pictures of it. Of `make compare`.

Real pictures of one label set are rare, but there are some: mostly of one object, of which each name has hundreds. A
model is asked for exactly what such pictures show, so that both figures are over the same label sets and layouts.
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
PAIRS, WITHIN = 64, 1 / 64  # pairs of real pictures, each object within a pixel of the same one in the other


def _by_label_set(conditions: Condition) -> list[Tensor]:
    """The indices of the pictures of each label set, of pictures whose places are all known; of sets shown twice."""
    rows = conditions.wholly_placed.nonzero()[:, 0]
    if not len(rows):
        return []
    _, group, counts = conditions.labels[rows].unique(dim=0, return_inverse=True, return_counts=True)
    parts = rows[group.argsort(stable=True)].split(counts.tolist())
    return [part for part in parts if len(part) > 1]


def of_one_label_set(conditions: Condition) -> list[Tensor]:
    """Indices of up to 16 pictures of one label set, of four sets that 8 pictures or more show: of most objects."""
    sizes = conditions.present.sum(1)
    many = [part for part in _by_label_set(conditions) if len(part) >= FEWEST]
    many.sort(key=lambda part: (-int(sizes[part[0]]), -len(part)))
    return [part[evenly(len(part), MOST)] for part in many[:SETS]]


def of_one_layout(conditions: Condition) -> Tensor:
    """Pairs (p, 2) of pictures of one label set whose objects stand within a pixel of one another; 64 at most."""
    found = []
    for part in _by_label_set(conditions):
        order = conditions.objects[part].argsort(dim=1)  # whatever the order of their lists
        places = conditions.places[part].gather(1, order[..., None].expand(-1, -1, 2)).flatten(1)
        close = torch.cdist(places, places, p=torch.inf) <= WITHIN
        found.append(part[close.triu(1).nonzero()])
    pairs = torch.cat(found) if found else torch.zeros(0, 2, dtype=torch.int64)
    return pairs[evenly(len(pairs), PAIRS)]


def variety_of_real(dataset: Dataset) -> dict[str, float | None]:
    """Mean distance of pixels between real pictures of one label set: at one layout, and over layouts."""
    every, pairs = dataset.conditions.to("cpu"), of_one_layout(dataset.conditions.to("cpu"))

    def real(rows: Tensor) -> Tensor:
        return to_unit(dataset.images[rows.to(dataset.images.device)]).cpu()

    over = [mean_pairwise_distance(real(rows)) for rows in of_one_label_set(every)]
    return _figures(mean_distance(real(pairs[:, 0]), real(pairs[:, 1])) if len(pairs) else None, over)


def variety(sampler: Sampler, dataset: Dataset, context: Context) -> dict[str, float | None]:
    """The same of a model's pictures, asked for what those real ones show; at one layout where it takes places."""
    every, how = dataset.conditions.to("cpu"), context.config.eval

    def made(rows: Tensor, name: str) -> Tensor:
        keys = [(how.seeds[0], "variety", name, i) for i in range(len(rows))]
        return sampler.sample(every[rows], keys, how).cpu()

    pairs = of_one_layout(every)
    one = None
    if sampler.takes_places and len(pairs):
        one = mean_distance(made(pairs[:, 0], "first"), made(pairs[:, 1], "second"))
    over = [mean_pairwise_distance(made(rows, f"set {i}")) for i, rows in enumerate(of_one_label_set(every))]
    return _figures(one, over)


def _figures(one_layout: float | None, over: list[float]) -> dict[str, float | None]:
    return {"one_layout": one_layout, "over_layouts": sum(over) / len(over) if over else None}
