"""A model's pictures on the test sets, and what the judge finds in them: of `make eval` and of the experiments."""

import time

import torch
from torch import Tensor

from models.evaluator import Evaluator, accuracy, top_k_hits
from stages.engine import distributed
from stages.engine.command import Context
from stages.engine.dataset import Dataset
from stages.engine.denoising import DiffusionSampler
from stages.engine.errors import UserError
from stages.engine.sampling import Sampler
from stages.evaluator import scores


def hits_and_labels(judge: Evaluator, images: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """Per picture, how many of its labels were found and how many there are: two (n,) tensors."""
    return top_k_hits(scores(judge, images, context).cpu(), labels), labels.sum(1).long()


def by_objects(hits: Tensor, counts: Tensor) -> dict[str, float]:
    """Accuracy of the pictures with one, two, ... labels."""
    return {str(n): (hits[counts == n].sum() / counts[counts == n].sum()).item() for n in counts.unique().tolist()}


def evaluate_set(
    sampler: Sampler, judge: Evaluator, name: str, labels: Tensor, context: Context, guide: Evaluator | None = None
) -> tuple[dict, Tensor]:
    """One model on one test set: its figures over all seeds, and the pictures of the first.

    Several processes share the seeds. With a guide its own accuracy stands beside the judge's: it saw the pictures
    being made.
    """
    how, per_seed, by_guide, all_hits = context.config.eval, [], [], []
    everything, rate = _sampled(sampler, name, labels, context)
    for images in everything:
        hits, counts = hits_and_labels(judge, images, labels, context)
        per_seed.append((hits.sum() / counts.sum()).item())
        all_hits.append(hits)
        if guide is not None:
            by_guide.append(accuracy(scores(guide, images, context).cpu(), labels))
    values = torch.tensor(per_seed, dtype=torch.float64)
    return {
        "accuracy": values.mean().item(),
        "std": values.std().item() if len(values) > 1 else 0.0,
        "per_seed": per_seed,
        "by_objects": by_objects(torch.cat(all_hits), counts.repeat(len(how.seeds))),
        "images_per_second": rate,
        **({"accuracy_by_the_guide": sum(by_guide) / len(by_guide)} if by_guide else {}),
    }, everything[0]


def _warm_up(sampler: Sampler, labels: Tensor, context: Context) -> None:
    """Samples a batch in few steps: what is done once (compiling, a GPU's kernels) is no part of a sampler's time."""
    how = context.config.eval
    if context.device.type == "cpu" and not how.compile:
        return
    if isinstance(sampler, DiffusionSampler):
        how = how.model_copy(update={"sampler": "ddim", "steps": min(4, len(sampler.diffusion))})
    sampler.sample(labels[: how.batch], [("warm-up", i) for i in range(len(labels[: how.batch]))], how).cpu()


def _sampled(sampler: Sampler, name: str, labels: Tensor, context: Context) -> tuple[Tensor, float]:
    """Every seed's pictures (seeds, n, 3, 64, 64), each made by one of the processes, and pictures a second."""
    how, world, seconds, mine = context.config.eval, distributed.world_size(), 0.0, 0
    pictures = torch.zeros(len(how.seeds), len(labels), 3, 64, 64)
    _warm_up(sampler, labels, context)
    for place, seed in enumerate(how.seeds):
        if place % world == distributed.rank():
            began = time.perf_counter()
            made = sampler.sample(labels, [(seed, name, i) for i in range(len(labels))], how)
            pictures[place] = made.cpu()  # waits for the device
            seconds, mine = seconds + time.perf_counter() - began, mine + len(labels)
    rate = torch.tensor(mine / seconds if mine else 0.0, device=context.device)
    if world > 1:  # each picture is one process's and the others' zeros
        pictures = distributed.total(pictures.to(context.device)).cpu()
    return pictures, distributed.total(rate).item()


def evaluate_sets(sampler: Sampler, judge: Evaluator, dataset: Dataset, context: Context) -> dict[str, dict]:
    """One model's figures on every test set, by the set's name."""
    return {n: evaluate_set(sampler, judge, n, labels, context)[0] for n, labels in dataset.test_sets.items()}


def shown(figures: dict) -> str:
    """Accuracy as people read it: mean ± deviation over the seeds."""
    return f"{figures['accuracy']:.3f} ± {figures['std']:.3f}"


def refuse_other_pictures(context: Context, exports: dict[str, dict], dataset: Dataset) -> None:
    """Raises UserError where an export, by what it says of itself, was made from other pictures than these."""
    for stage, about in exports.items():
        if about["identity"]["parent data"] != dataset.sha256:
            raise UserError(
                f"{context.export(stage)} was made from other pictures than {dataset.folder}; set data.folder"
            )
