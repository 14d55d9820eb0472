"""Measures likeness and variety without the judge: Fréchet distance, precision, recall and coverage of features.

The features are of a network for photographs that neither generators nor judges were trained with, if its weights are
installed, else of the evaluator. Real pictures measured in the same way are the floor.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.condition import Condition
from models.distances import coverage, frechet_distance, precision_and_recall
from models.evaluator import Evaluator
from stages.commands import COMPARED
from stages.engine.command import Context
from stages.engine.dataset import Dataset
from stages.engine.photographs import INSTALL, load_photograph_network
from stages.engine.sampling import Sampler, by_names
from stages.judge import as_input

NEIGHBOURS, COVERED = 3, 5  # k of precision and recall, k of coverage: those of the papers
FIGURES = ("frechet_distance", "precision", "recall", "coverage")
HEAD = ["Fréchet distance", "precision", "recall", "coverage"]


@torch.no_grad()
def features(network: Callable[[Tensor], Tensor], images: Tensor, context: Context, batch: int = 64) -> Tensor:
    """Maps (n, 3, s, s), uint8 or in [-1, 1], to a network's features (n, d), on the CPU in float32."""
    return torch.cat([network(as_input(part, context)).float().cpu() for part in images.split(batch)])


@dataclass(frozen=True)
class Quality:
    """Measures a model's pictures. `asked`: what it draws; `real`: features of as many other held-out pictures.

    `floor` has the figures of the real pictures of `asked`.
    """

    context: Context
    name: str
    network: Callable[[Tensor], Tensor]
    asked: Condition
    real: Tensor
    floor: dict

    def of(self, sampler: Sampler) -> dict:
        """Returns a model's figures: n pictures drawn with the first seed, asked for by names only."""
        how = self.context.config.eval
        keys = [(how.seeds[0], "held out", i) for i in range(len(self.asked))]
        made = sampler.sample(self.asked, keys, how)
        return self._figures(features(self.network, made, self.context))

    def _figures(self, made: Tensor) -> dict:
        return figures(self.real, made) | {"features": self.name, "pictures": len(made)}

    @property
    def words(self) -> str:
        """Says on which features the figures are, and of which pictures."""
        on = {
            "photographs": "on features of EfficientNet-Lite0, trained on photographs only (ImageNet)",
            "evaluator": "on features of the evaluator, which the recipes were chosen by, because the network for "
            f"photographs is not installed ({INSTALL})",
        }[self.name]
        return (
            f"Fréchet distance (lower is better), precision, recall and coverage (higher is better) {on}: "
            f"{len(self.asked)} pictures of the label sets of one half of the held-out pictures against the real ones "
            f"of the other half, {NEIGHBOURS} neighbours for precision and recall, {COVERED} for coverage. Real "
            f"pictures of the first half, measured in the same way, are the floor. Compare only figures over the same "
            f"number of pictures."
        )


def figures(real: Tensor, made: Tensor) -> dict:
    """Returns all four figures of features (n, d) and (m, d), of two or more samples each."""
    fewest = min(len(real), len(made)) - 1
    precision, recall = precision_and_recall(real, made, min(NEIGHBOURS, fewest))
    covered = coverage(real, made, min(COVERED, fewest))
    values = (frechet_distance(real, made), precision, recall, covered)
    return dict(zip(FIGURES, values, strict=True))


def load_quality(context: Context, dataset: Dataset, judge: Evaluator, most: int = COMPARED) -> Quality | None:
    """Returns how to measure quality with up to `most` pictures, or None where fewer than four are held out.

    Held-out pictures are in the order of their scenes, so at most one scene, at the border, is in both halves.
    """
    n = min(most, len(dataset.held_out_images) // 2)
    if n < 2:
        return None
    photographs = load_photograph_network()
    name = "photographs" if photographs else "evaluator"
    network = context.on_device(photographs).features if photographs else judge.features
    first, second = (features(network, dataset.held_out_images[i * n : (i + 1) * n], context) for i in (0, 1))
    asked = by_names(dataset.held_out_conditions[:n])
    quality = Quality(context, name, network, asked, second, {})
    quality.floor.update(quality._figures(first))
    return quality


def cells(found: dict | None) -> list:
    """Returns the cells of a table below HEAD."""
    if not found:
        return [None] * len(FIGURES)
    distance, *shares = (found[name] for name in FIGURES)
    return [f"{distance:.1f}", *shares]
