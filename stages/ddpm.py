"""`make ddpm`: trains diffusion on pictures, without an autoencoder, by the multiply-add U-Net or a UNet on patches."""

import torch
from torch import Tensor

from data.joined import Rows
from models.layouts import LayoutPrior
from models.multiply_add_unet import MultiplyAddUNet
from models.patches import PatchUNet
from stages.commands import COMMANDS
from stages.diffusion import DiffusionSampler, DiffusionTask, LogProbability
from stages.engine import distributed
from stages.engine.command import Context, run_command
from stages.engine.compiled import compile_network
from stages.engine.dataset import Dataset, load_dataset
from stages.engine.draws import Coming
from stages.engine.export import read_about
from stages.engine.rules import refuse_missing_section
from stages.engine.run import Run
from stages.engine.schema import REPORTED, Ddpm, flatten
from stages.engine.trained import load_trained
from stages.judge import accuracy_by, guide_of, load_evaluator

# for pictures in [-1, 1], about four grey levels: pixels that hardly ever change show noise, not to be learned
LEAST_DEVIATION = 0.03


def section_of(context: Context) -> Ddpm:
    """Returns the configuration's `ddpm` section. Raises UserError if it has none."""
    refuse_missing_section(context.config, "ddpm", context.arguments.config)
    assert context.config.ddpm is not None
    return context.config.ddpm


def build_ddpm(settings: Ddpm, classes: int, most: int, size: int) -> MultiplyAddUNet | PatchUNet:
    """Builds the network of a `ddpm` section. For patches: `most` objects in a training picture, and its `size`."""
    if settings.network == "patches":
        return PatchUNet(classes, most, settings.bottleneck, side=size, **settings.unet.model_dump())
    return MultiplyAddUNet(classes, settings.timesteps, settings.width, settings.paths, settings.places, settings.stem)


def pixel_scale(images: Rows) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation (3, s, s) of each pixel over pictures (n, 3, s, s) uint8, scaled to [-1, 1].

    The sums are of integers and exact in float64 (up to 10^11 pictures), so the size of the parts changes no bit.
    """
    total, squares = (torch.zeros(images.shape[1:], dtype=torch.float64, device=images.device) for _ in range(2))
    for part in images.split(256):
        values = part.double()
        total += values.sum(dim=0)
        squares += values.square().sum(dim=0)
    mean = total / len(images)
    deviation = (squares / len(images) - mean.square()).clamp(min=0).sqrt()
    return (mean / 127.5 - 1).float(), (deviation / 127.5).clamp(min=LEAST_DEVIATION).float()


def pixel_sampler(
    context: Context,
    network: MultiplyAddUNet | PatchUNet,
    settings: Ddpm,
    layouts: LayoutPrior,
    guide: LogProbability | None,
) -> DiffusionSampler:
    """Returns a sampler of pictures for a network on pictures."""
    decode = network.pictures if isinstance(network, PatchUNet) else lambda x: x
    shape = (3, context.config.data.size, context.config.data.size)
    return DiffusionSampler(context, "ddpm", network, settings, shape, decode, layouts, guide)


def load_ddpm(context: Context) -> tuple[DiffusionSampler, dict]:
    """Loads the experiment's pixel DDPM as a sampler, and the description in its export."""

    def build(settings: Ddpm, about: dict) -> MultiplyAddUNet | PatchUNet:
        most = about.get("most", 0)  # older exports have none: multiply-add
        return build_ddpm(settings, about["classes"], most, context.config.data.size)

    network, settings, about, layouts = load_trained(context, "ddpm", Ddpm, build)
    if how := context.config.eval.compile:
        compile_network(network, context.device, how, constant=True)
    return pixel_sampler(context, network, settings, layouts, guide_of(context, about["classes"])), about


class Plateau:
    """A report's rule: the learning rate falls by `factor` when no accuracy has risen for `patience` previews.

    Its state is part of the checkpoint, as the factor is part of the run.
    """

    def __init__(self, task: DiffusionTask, factor: float, patience: int):
        self.task, self.factor, self.patience = task, factor, patience
        self.best: dict[str, float] = {}
        self.waited = 0

    def see(self, metrics: dict[str, float]) -> None:
        """Takes the accuracies of a preview."""
        values = torch.tensor(list(metrics.values()), device=self.task.context.device)
        means = distributed.average(values).tolist()
        metrics = dict(zip(metrics, means, strict=True))
        risen = [name for name, value in metrics.items() if value > self.best.get(name, -1.0)]
        self.best |= {name: metrics[name] for name in risen}
        self.waited = 0 if risen else self.waited + 1
        if self.waited >= self.patience:
            self.task.optimizers[0].factor *= self.factor
            self.waited = 0

    def state_dict(self) -> dict:
        return {"best": self.best, "waited": self.waited, "factor": self.task.optimizers[0].factor}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.waited = dict(state["best"]), state["waited"]
        self.task.optimizers[0].factor = state["factor"]


class DdpmTask(DiffusionTask[MultiplyAddUNet | PatchUNet]):
    """Trains diffusion on pictures, with the plateau factor."""

    def __init__(self, context: Context, dataset: Dataset):
        settings = section_of(context)
        classes, most = len(dataset.vocabulary), dataset.most_objects
        torch.manual_seed(context.config.seed)
        network = context.on_device(build_ddpm(settings, classes, most, dataset.size))
        network = distributed.with_global_batch_norms(network)
        clean = dataset.pictures
        if isinstance(network, PatchUNet):
            network.set_scale(*pixel_scale(dataset.images))

            def clean(index: Tensor, coming: Coming | None = None) -> Tensor:
                return network.normalised(dataset.pictures(index, coming))

        evaluator, _ = load_evaluator(context, classes)
        guide = guide_of(context, classes)
        super().__init__(
            context,
            "ddpm",
            settings,
            dataset,
            network,
            clean,
            lambda average, layouts: pixel_sampler(context, average, settings, layouts, guide),
            accuracy_by(evaluator, context),
            {"classes": classes, "most": most, "objects": dataset.vocabulary.names},
        )
        self.plateau = Plateau(self, settings.plateau_factor, settings.plateau_patience)
        self.parts["plateau"] = self.plateau

    def preview(self, step: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        metrics, pictures = super().preview(step)
        self.plateau.see(metrics)
        return metrics, pictures


def main(context: Context) -> None:
    settings = section_of(context)
    dataset = load_dataset(context.config, context.device)
    parents: dict[str, object] = {**dataset.parents}
    dataset.must_know(context.config, "ddpm")
    if settings.wants_layouts:
        parents |= dataset.layouts(settings.takes_turns)
    if settings.plateau_factor < 1:  # then the accuracy of previews is part of the training
        judged_by = read_about(context.export("evaluator"), f"run {context.make('evaluator')}")
        parents["evaluator"] = judged_by["sha256"]
        not_it = ("eval.seeds", "eval.sampler", "eval.compile")
        parents |= {k: v for k, v in flatten(context.config.eval, "eval.").items() if k not in not_it}
        if (asked := context.config.data.conditions) != REPORTED:  # older runs do not name these two
            parents["conditions"] = " ".join(asked)
    run = Run(context, "ddpm", parents)
    if not run.finished():
        run.train(DdpmTask(context, dataset))


if __name__ == "__main__":
    run_command(COMMANDS["ddpm"], main)
