"""`make evaluator`: adopts the lab's checkpoint, or trains a ResNet-18 and measures it on held-out scenes."""

import hashlib
import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.sizes import SIZE
from models.condition import Condition, cell_labels, cell_loss, cell_weights, label_loss
from models.evaluator import STRIDE, Evaluator, accuracy
from stages.commands import COMMANDS
from stages.engine import distributed
from stages.engine.command import Context, run_command
from stages.engine.dataset import PREVIEWED, Dataset, load_dataset
from stages.engine.distributed import with_global_batch_norms
from stages.engine.draws import Draws
from stages.engine.ema import Ema
from stages.engine.errors import UserError, is_out_of_memory, oneline
from stages.engine.export import save_export
from stages.engine.log import say
from stages.engine.optim import Optimizer
from stages.engine.parts import means, parts_of
from stages.engine.run import Part, Run
from stages.judge import load_evaluator, scores


def augmented(images: Tensor, condition: Condition, low_resolution: float, draws: Draws) -> tuple[Tensor, Condition]:
    """Mirrors half, shifts by up to a 16th, passes the share `low_resolution` through half the size; moves places too.

    Pictures (b, 3, s, s).
    """
    size, most = images.shape[-1], images.shape[-1] // 16
    mirrored = draws.uniform(1, 1, 1) < 0.5
    images = torch.where(mirrored, images.flip(3), images)
    dx, dy = draws.number(2 * most + 1, "dx"), draws.number(2 * most + 1, "dy")
    images = F.pad(images, (most,) * 4, mode="replicate")[:, :, dy : dy + size, dx : dx + size]
    coarse = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear", align_corners=False)
    chosen = draws.uniform(1, 1, 1) < low_resolution
    x, y = condition.places.unbind(-1)
    x = torch.where(mirrored[:, 0, 0], 1 - x, x)
    moved = torch.stack([x + (most - dx) / size, y + (most - dy) / size], dim=-1).clamp(0, 1)
    places = torch.where(condition.placed[..., None], moved, condition.places)
    return torch.where(chosen, coarse, images), condition.with_places(places)


class EvaluatorTask:
    """Trains by binary cross-entropy on the labels; part of each batch passes through half its size, as for the lab's.

    With `cell_weight` a linear head on the middle features learns what each cell shows, where places are known. The
    features then learn sooner; the head is not part of the evaluator.
    """

    def __init__(self, context: Context, dataset: Dataset):
        self.context, self.dataset, self.settings = context, dataset, context.config.evaluator
        torch.manual_seed(context.config.seed)
        network = context.on_device(Evaluator(len(dataset.vocabulary)))
        self.network, self.ema = with_global_batch_norms(network), Ema(network, self.settings.ema)
        self.cells = None
        if self.settings.cell_weight > 0:
            self.cells = nn.Conv2d(128, len(dataset.vocabulary) + 1, 1).to(context.device)
        learned = nn.ModuleList([network, self.cells]) if self.cells else network
        self.optimizers = [Optimizer(learned, self.settings, context.dtype)]
        self.parts: dict[str, Part] = {"network": network, "ema": self.ema.average, "optimizer": self.optimizers[0]}
        if self.cells:
            self.parts["cells"] = self.cells

    def step(self, step: int, draws: Draws) -> dict[str, Tensor]:
        s, (index, coming) = self.settings, draws.pictures(self.dataset.once)
        pictures, condition = self.dataset.pictures(index, coming), self.dataset.conditions[index]
        images, condition = augmented(pictures, condition, s.low_resolution, draws)
        images, labels = images.contiguous(memory_format=torch.channels_last), self.dataset.labels(index)
        parts, found = parts_of(len(images), s.accumulate), []
        if self.cells:
            shown = cell_labels(condition, images.shape[-1] // STRIDE)
            weight = distributed.average(cell_weights(shown, condition.classes).sum()) / len(parts)
        self.network.train()
        for rows in parts:
            with self.context.autocast():
                middle = self.network.middle(images[rows])
                logits = self.network.from_middle(middle)
            loss = label_loss(logits, labels[rows])
            found.append({"loss": loss})
            if self.cells:
                found[-1]["cells"] = cell_loss(self.cells(middle.float()), shown[rows], lambda part: weight)
                loss = loss + s.cell_weight * found[-1]["cells"]
            self.optimizers[0].add(loss, len(parts), last=rows is parts[-1])
        norm = self.optimizers[0].take(step)
        self.ema.update(step)
        return {**means(found), "gradient_norm": norm}

    def measure(self, most: int | None = None) -> float:
        images, labels = self.dataset.held_out(most)
        return accuracy(scores(self.ema.average, images, self.context), labels)

    def preview(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        return {"held_out_accuracy": self.measure(PREVIEWED)}, {}

    def export(self) -> tuple[dict[str, Tensor], dict]:
        return self.ema.average.state_dict(), {"kind": "trained", "real_accuracy": self.measure()}


def load_lab_checkpoint(path: Path, classes: int) -> Evaluator:
    """Loads the lab's `checkpoint.pth`: {"model": state dict of a torchvision resnet18 with fc = Linear, Sigmoid}.

    Nothing in the file is executed (weights_only). Raises UserError if keys or shapes differ.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is missing: put the lab's checkpoint there, or set evaluator.checkpoint=null to train one"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused ({oneline(error)[:90]}); it must hold tensors only") from None
    except Exception as error:  # a file that is no checkpoint fails in many ways
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path} is damaged ({oneline(error)[:90]}); copy it again") from None
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise UserError(f"{path}: no state dict under the key 'model'; is it the lab's checkpoint.pth?")
    network = Evaluator(classes)
    expected = network.resnet18.state_dict()
    wrong = [k for k in expected if k not in state or getattr(state[k], "shape", None) != expected[k].shape]
    wrong += [k for k in state if k not in expected]
    if wrong:
        raise UserError(
            f"{path}: {wrong[0]} is missing, unknown or of another shape ({len(wrong)} keys are); "
            f"expected a ResNet-18 with {classes} outputs"
        )
    network.resnet18.load_state_dict(state)
    return network.eval()


def _adopt_lab(context: Context, run: Run, dataset: Dataset, checkpoint: Path) -> None:
    network = load_lab_checkpoint(checkpoint, len(dataset.vocabulary))
    network.to(context.device)
    real = accuracy(scores(network, dataset.held_out_images, context), dataset.held_out_labels)
    about = {"kind": "lab", "real_accuracy": real, "identity": run.identity, "size": SIZE, "steps": 0, "seconds": 0.0}
    run.make_way()
    if distributed.is_main():
        save_export(context.export("evaluator"), network.state_dict(), about)
    distributed.barrier()


def main(context: Context) -> None:
    dataset = load_dataset(context.config, context.device)
    parents, lab = dataset.parents, context.config.evaluator.checkpoint
    if lab and Path(lab).is_file():
        parents["checkpoint"] = hashlib.sha256(Path(lab).read_bytes()).hexdigest()
    if not lab and context.config.evaluator.cell_weight > 0:
        parents["places"] = dataset.places_sha256
    run = Run(context, "evaluator", parents)
    if run.finished():
        return
    if lab:
        _adopt_lab(context, run, dataset, Path(lab))
    else:
        run.train(EvaluatorTask(context, dataset))
    about = load_evaluator(context, len(dataset.vocabulary))[1]
    say(f"{run.title}: {about['kind']} evaluator, accuracy {about['real_accuracy']:.3f} on held-out pictures")


if __name__ == "__main__":
    run_command(COMMANDS["evaluator"], main)
