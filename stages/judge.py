"""Loads and applies evaluator and reader, and measures models over sampling seeds."""

import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from data.images import to_unit
from data.joined import Rows
from models.condition import Condition
from models.evaluator import Evaluator, accuracy, agreement, found_labels, top_k_hits
from models.reader import Found, Reader, found, label_scores, placing
from models.vqvae import VQVAE, perplexity
from stages.diffusion import DiffusionSampler
from stages.engine.command import JUDGES, Context
from stages.engine.dataset import Dataset
from stages.engine.errors import UserError
from stages.engine.export import load_export, of_this_version, refuse_other_size
from stages.engine.run import DATA, SCENES, of_same_pictures
from stages.engine.sampling import Sampler, by_names, sample_shared
from stages.engine.schema import Reader as ReaderSection
from stages.engine.trained import filled, load_trained


def load_evaluator(context: Context, classes: int, role: str = "evaluator") -> tuple[Evaluator, dict]:
    """Loads the experiment's evaluator, its guide or one of JUDGES, frozen on the device, and its metadata."""
    remedy = f"run {context.make('evaluator')}" if role == "evaluator" else "train the evaluator of that experiment"
    tensors, about = load_export(context.export(role), remedy)
    refuse_other_size(context.export(role), about, context.config.data.size)
    try:
        network = filled(lambda: Evaluator(classes), tensors)
    except RuntimeError:
        raise UserError(
            f"{context.export(role)} was made for other objects; run {context.make('evaluator FRESH=1')}"
        ) from None
    return context.on_device(network.eval().requires_grad_(False)), about


def load_other_judges(context: Context, classes: int) -> dict[str, Evaluator]:
    """Loads those of JUDGES that `make judges` has trained."""
    trained = (role for role in JUDGES if context.export(role).exists())
    return {role: load_evaluator(context, classes, role)[0] for role in trained}


def load_reader(context: Context) -> tuple[Reader, dict]:
    """Loads the experiment's reader, frozen on the device, and its export's metadata."""
    trained = load_trained(
        context, "reader", ReaderSection, lambda settings, about: Reader(about["classes"]), autocast=False
    )
    return trained.network, trained.about


@torch.no_grad()
def scores(network: Evaluator, images: Rows, context: Context, batch: int = 256) -> Tensor:
    """Maps (n, 3, s, s), uint8 or in [-1, 1], to logits (n, classes), in float32 as the lab's: near ties matter."""
    network.eval()
    return torch.cat([network.logits(as_input(part, context)) for part in images.split(batch)])


def as_input(images: Tensor, context: Context) -> Tensor:
    """Converts (n, 3, s, s), uint8 or in [-1, 1], to [-1, 1] on the device, as networks take them."""
    images = images.to(context.device)  # before it takes four times the bytes
    images = to_unit(images) if images.dtype == torch.uint8 else images
    return images.to(memory_format=torch.channels_last)


def accuracy_by(network: Evaluator, context: Context) -> Callable[[Tensor, Tensor], float]:
    """Returns the evaluator's accuracy as a function of pictures (n, 3, s, s) in [-1, 1] and labels (n, classes)."""
    return lambda images, labels: accuracy(scores(network, images, context).cpu(), labels)


def guide_of(context: Context, classes: int) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Returns pictures (b, 3, s, s), labels -> log p(labels | picture) (b,), or None without classifier guidance.

    It is the sum over all objects of the log-likelihood of the guide's sigmoid outputs: a picture has several labels.
    """
    if context.config.eval.classifier_guidance == 0:
        return None
    guide, _ = load_evaluator(context, classes, "guide")

    def log_probability(images: Tensor, labels: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(guide.logits(images), labels, reduction="none").sum(1)

    return log_probability


@torch.no_grad()
def read(reader: Reader, images: Tensor, context: Context, batch: int = 256) -> tuple[list[list[Found]], Tensor]:
    """Reads from (n, 3, s, s), uint8 or in [-1, 1], what each shows and where, and label scores (n, classes)."""
    reader.eval()
    seen, scores = [], []
    for part in images.split(batch):
        logits, offsets = (out.cpu() for out in reader(as_input(part, context)))  # in float32, as the evaluator's
        seen += found(logits, offsets)
        scores.append(label_scores(logits))
    return seen, torch.cat(scores)


def hits_and_labels(judge: Evaluator, images: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """Counts each picture's labels that were found, and all its labels: two (n,) tensors."""
    return top_k_hits(scores(judge, images, context).cpu(), labels), labels.sum(1).long()


def by_objects(hits: Tensor, counts: Tensor) -> dict[str, float]:
    """Returns the accuracy on pictures with one, two, ... labels."""
    return {str(n): (hits[counts == n].sum() / counts[counts == n].sum()).item() for n in counts.unique().tolist()}


def evaluate_set(
    sampler: Sampler,
    judge: Evaluator,
    name: str,
    condition: Condition,
    context: Context,
    guide: Evaluator | None = None,
    others: Mapping[str, Evaluator] | None = None,
) -> tuple[dict, Tensor]:
    """Evaluates one model on one test set. Returns its figures over all seeds, and the pictures of the first.

    Several processes share the pictures. With a guide its accuracy is reported too, because the guide
    steered the sampling. `others`: further judges, by which nothing was chosen.
    """
    how, labels, per_seed, by_guide, all_hits = context.config.eval, condition.labels, [], [], []
    everything, rate = _sampled(sampler, name, condition, context)
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
        **({"by_other_judges": by_others(judge, others, everything, labels, context)} if others else {}),
    }, everything[0]


def by_others(
    judge: Evaluator, others: Mapping[str, Evaluator], everything: Tensor, labels: Tensor, context: Context
) -> dict:
    """Returns what further judges find in pictures (seeds, n, 3, s, s), and how far all of them agree.

    `accuracy` is the mean of `per_judge`; `agreement` is the share of labels that all judges found, or none did.
    """
    pictures, asked = everything.flatten(0, 1), labels.repeat(len(everything), 1)
    found = {name: found_labels(scores(j, pictures, context).cpu(), asked) for name, j in others.items()}
    per_judge = {name: (marked.sum() / asked.sum()).item() for name, marked in found.items()}
    every = [found_labels(scores(judge, pictures, context).cpu(), asked), *found.values()]
    mean = sum(per_judge.values()) / len(per_judge)
    return {"accuracy": mean, "per_judge": per_judge, "agreement": agreement(every, asked)}


def _warm_up(sampler: Sampler, condition: Condition, context: Context) -> None:
    """Samples a batch in few steps, so that compiling and loading GPU kernels do not count as sampling time."""
    how = context.config.eval
    if context.device.type == "cpu" and not how.compile:
        return
    if isinstance(sampler, DiffusionSampler):
        how = how.model_copy(update={"sampler": "ddim", "steps": min(4, len(sampler.diffusion))})
    first = condition[: how.batch]
    sampler.sample(first, [("warm-up", i) for i in range(len(first))], how).cpu()


def _sampled(sampler: Sampler, name: str, condition: Condition, context: Context) -> tuple[Tensor, float]:
    """Samples all seeds' pictures (seeds, n, 3, s, s), shared by the processes. Returns them and pictures a second."""
    how, size = context.config.eval, context.config.data.size
    pictures = torch.empty(len(how.seeds), len(condition), 3, size, size)
    _warm_up(sampler, condition, context)
    asked = [(condition, [(seed, name, i) for i in range(len(condition))]) for seed in how.seeds]
    began = time.perf_counter()
    for place, made in enumerate(sample_shared(sampler, asked, how, size, context.device)):
        pictures[place] = made.cpu()  # waits for the device
    return pictures, len(how.seeds) * len(condition) / (time.perf_counter() - began)


def evaluate_held_out(
    sampler: Sampler, judge: Evaluator, reader: Reader, asked: Condition, context: Context
) -> dict[str, float | None]:
    """Asks a model for what held-out pictures show, with their places and by names only, with the first seed.

    How objects are turned is not given: the program chooses it, as for a user.

    The judge gives `accuracy_given` and `accuracy_chosen`; the reader gives `placing`'s figures for the pictures with
    places given. For a model that takes no places, all but `accuracy_chosen` and the count errors is None.
    """
    how, asked = context.config.eval, asked.to("cpu").without_turns()
    keys = [(how.seeds[0], "held out", i) for i in range(len(asked))]

    def drawn(condition: Condition) -> tuple[Tensor, float]:
        (made,) = sample_shared(sampler, [(condition, keys)], how, context.config.data.size, context.device)
        images = made.cpu()
        return images, accuracy(scores(judge, images, context).cpu(), asked.labels)

    (images, chosen), given, shown = drawn(by_names(asked)), None, by_names(asked)
    if sampler.takes_places:
        (images, given), shown = drawn(asked), asked
    seen, _ = read(reader, images, context)
    return {"accuracy_given": given, "accuracy_chosen": chosen, **placing(seen, shown, images.shape[-1])}


def evaluate_sets(sampler: Sampler, judge: Evaluator, dataset: Dataset, context: Context) -> dict[str, dict]:
    """Returns one model's figures on every test set, by the set's name."""
    return {n: evaluate_set(sampler, judge, n, asked, context)[0] for n, asked in dataset.test_sets.items()}


def shown(figures: dict) -> str:
    """Formats accuracy for people: mean ± deviation over the seeds."""
    return f"{figures['accuracy']:.3f} ± {figures['std']:.3f}"


def refuse_other_pictures(context: Context, exports: dict[str, dict], dataset: Dataset) -> None:
    """Raises UserError if an export's metadata names other pictures than these, or another size."""
    for stage, about in exports.items():
        refuse_other_size(context.export(stage), about, dataset.size)
        with of_this_version(context.export(stage), context.make(f"{stage} FRESH=1")):
            made_from = {DATA: about["identity"][DATA], SCENES: about["identity"].get(SCENES)}
        if not of_same_pictures([made_from, {DATA: dataset.sha256, SCENES: dataset.scenes or None}]):
            raise UserError(
                f"{context.export(stage)} was made from other pictures than {dataset.folder}; set data.folder to them"
            )


@torch.no_grad()
def reconstruct(vae: VQVAE, images: Tensor, context: Context, quantize: bool) -> tuple[Tensor, Tensor]:
    """Reconstructs at most 256 pictures (n, 3, s, s) uint8: (n, 3, s, s) in [-1, 1], and indices (n, s/8, s/8).

    The pictures may be on another device.
    """
    with context.autocast():
        reconstruction, indices, _ = vae(as_input(images, context), quantize)
    return reconstruction.clamp(-1, 1), indices


def measure_vae(
    vae: VQVAE,
    judge: Evaluator,
    dataset: Dataset,
    context: Context,
    most: int | None = None,
    others: Mapping[str, Evaluator] | None = None,
) -> dict[str, float]:
    """Measures PSNR (pixels in [0, 1]), the use of codes and the judge's accuracy on the held-out pictures.

    Reconstructions are decoded as samples are, from codes or from latents; the other way is measured too. The
    pictures are measured 256 at a time: of each only its codes and the judge's scores are kept. `most`: at most so
    many pictures, evenly chosen. `others`: further judges of the reconstructions, by role.
    """
    images, labels = dataset.held_out(most)
    others = others or {}
    errors, kept, by_others = [], [], {role: list[Tensor]() for role in others}
    for part in images.split(256):
        made, codes = reconstruct(vae, part, context, vae.decodes_codes)
        other, _ = reconstruct(vae, part, context, not vae.decodes_codes)
        error = ((made - to_unit(part.to(context.device))) / 2).square().mean()
        errors.append(error.double() * len(part))
        kept.append((codes, *(scores(judge, shown, context) for shown in (part, made, other))))
        for role, network in others.items():
            by_others[role].append(scores(network, made, context))
    codes, of_original, of_made, of_other = map(torch.cat, zip(*kept, strict=True))
    counts = codes.unique(return_counts=True)[1]
    way = "latents" if vae.decodes_codes else "codes"
    return {
        "psnr": (-10 * (torch.stack(errors).sum() / len(images)).float().log10()).item(),
        "codes_in_use": len(counts),
        "codebook_use": len(counts) / vae.quantizer.codebook_size,
        "codebook_perplexity": perplexity(counts).item(),
        "original_accuracy": accuracy(of_original, labels),
        "reconstruction_accuracy": accuracy(of_made, labels),
        f"reconstruction_accuracy_from_{way}": accuracy(of_other, labels),
        **{f"reconstruction_accuracy_by_{role}": accuracy(torch.cat(x), labels) for role, x in by_others.items()},
    }


def shows_nothing(metrics: dict[str, float]) -> str | None:
    """Returns a warning if the judge reads no more from reconstructions than it would by chance, else None."""
    read, original = metrics["reconstruction_accuracy"], metrics["original_accuracy"]
    if read >= 0.25 * original:
        return None
    return (
        f"the judge reads {read:.3f} of the labels from reconstructions and {original:.3f} from the pictures; if the "
        "loss no longer falls, the latents have collapsed: lower vae.learning_rate or raise vae.warmup, then run "
        "with FRESH=1"
    )
