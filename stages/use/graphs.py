"""Writes networks as ONNX graphs of plain tensors, and measures how far onnxruntime's result is from torch's.

A graph takes a condition as `objects` (b, m), `places` (b, m, 2) and, if its network reads them, `turns` (b, m), as in
models/condition.py: -1 where there is no object and where a place or turn is not known. Batch b and slots m may have
any size. All arithmetic is float32.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.condition import Condition, unknown_turns
from models.evaluator import Evaluator
from models.placed_gan import PlacedGenerator
from models.self_condition import takes_estimate
from models.wgan import Generator
from stages.engine.sampling import takes_turns

OPSET = 18  # what torch's exporter writes itself; it converts to later ones
TOLERANCE = 1e-3  # the largest difference from torch that is accepted, of outputs that are about 1
BATCH, SLOTS = "batch", "slots"  # the axes of any size
PER_OBJECT = ("objects", "places", "turns", "object_noise")  # inputs with an axis of slots


class Denoiser(nn.Module):
    """One call of a diffusion network: noisy x (b, c, h, w), t (b,) int64 and a condition -> its prediction.

    `keep` (b,) bool: rows with False get no condition, as guidance needs. `estimate` (b, c, h, w), only of a
    network with self-conditioning: the x_0 that the call before predicted, at first zeros. `turns` (b, m): only of a
    network that reads them.
    """

    def __init__(self, network: nn.Module, classes: int):
        super().__init__()
        self.network, self.classes = network, classes

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        objects: Tensor,
        places: Tensor,
        keep: Tensor,
        turns: Tensor | None = None,
        estimate: Tensor | None = None,
    ) -> Tensor:
        more = () if estimate is None else (estimate,)
        turns = unknown_turns(objects) if turns is None else turns
        return self.network(x, t, Condition(objects, places, turns, self.classes), keep, *more)


class Decoder(nn.Module):
    """What a sampling ends with, x (b, c, h, w) -> pictures (b, 3, s, s) in [-1, 1], by `decode` of `network`."""

    def __init__(self, network: nn.Module, decode: Callable[[Tensor], Tensor]):
        super().__init__()
        self.network, self.decode = network, decode  # the network is a part of this module; `decode` is a way to it

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(x).float().clamp(-1, 1)


class Drawer(nn.Module):
    """A GAN's generator and what follows it: noise (b, n) and a condition -> pictures (b, 3, s, s) in [-1, 1].

    A generator on a map of places also takes `object_noise` (b, m, k), k numbers for each object.
    """

    def __init__(self, generator: Generator | PlacedGenerator, classes: int, decoder: nn.Module):
        super().__init__()
        self.generator, self.classes, self.decoder = generator, classes, decoder

    def forward(self, noise: Tensor, objects: Tensor, places: Tensor, object_noise: Tensor | None = None) -> Tensor:
        if object_noise is not None:
            noise = torch.cat([noise, object_noise.flatten(1)], dim=1)
        condition = Condition(objects, places, unknown_turns(objects), self.classes)
        return self.decoder(self.generator(noise, condition))


class Judge(nn.Module):
    """The evaluator's scores before the sigmoid: pictures (b, 3, s, s) in [-1, 1] -> logits (b, classes)."""

    def __init__(self, network: Evaluator):
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor:
        return self.network.logits(pictures)


@dataclass(frozen=True)
class Graph:
    """A module to write, and what it does in `words`. `inputs(rows, slots, generator)` draws its inputs, by name."""

    module: nn.Module
    inputs: Callable[[int, int, torch.Generator], dict[str, Tensor]]
    output: str
    words: str

    def example(self) -> dict[str, Tensor]:
        """Returns inputs to trace it with: sizes other than 1, which the exporter would take for fixed."""
        return self.inputs(2, 3, torch.Generator().manual_seed(0))

    def shapes(self) -> dict[str, str]:
        """Returns the inputs' shapes in words, such as (batch, slots, 2)."""
        found = {}
        for name, value in self.example().items():
            axes = _axes(name)
            found[name] = f"({', '.join(axes.get(i, str(n)) for i, n in enumerate(value.shape))})"
        return found


def _axes(name: str) -> dict[int, str]:
    """Returns the axes of an input that may have any size."""
    return {0: BATCH, 1: SLOTS} if name in PER_OBJECT else {0: BATCH}


def _condition(classes: int, rows: int, slots: int, draw: torch.Generator) -> dict[str, Tensor]:
    """Draws conditions of one to `slots` objects, some of them without a place."""
    objects = torch.randint(classes, (rows, slots), generator=draw)
    places = torch.rand(rows, slots, 2, generator=draw)
    absent = torch.arange(slots)[None] > torch.randint(slots, (rows, 1), generator=draw)
    unknown = absent | (torch.rand(rows, slots, generator=draw) < 0.3)
    return {"objects": objects.masked_fill(absent, -1), "places": places.masked_fill(unknown[..., None], -1.0)}


def denoiser(network: nn.Module, shape: tuple[int, ...], classes: int, timesteps: int) -> Graph:
    """Returns the graph of a diffusion network on x (b, *shape), with t below `timesteps`."""

    def inputs(rows: int, slots: int, draw: torch.Generator) -> dict[str, Tensor]:
        made = {
            "x": torch.randn(rows, *shape, generator=draw),
            "t": torch.randint(timesteps, (rows,), generator=draw),
            **_condition(classes, rows, slots, draw),
            "keep": torch.arange(rows) % 2 == 0,
        }
        if takes_turns(network):
            turns = torch.rand(rows, slots, generator=draw)
            made["turns"] = turns.masked_fill(made["places"][..., 0] < 0, -1.0)
        if takes_estimate(network):
            made["estimate"] = torch.randn(rows, *shape, generator=draw)
        return made

    return Graph(Denoiser(network, classes), inputs, "prediction", "noisy x, t, a condition -> prediction")


def decoder(network: nn.Module, decode: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Graph:
    """Returns the graph of a decoder of x (b, *shape)."""
    return Graph(
        Decoder(network, decode),
        lambda rows, slots, draw: {"x": torch.randn(rows, *shape, generator=draw)},
        "pictures",
        "what a sampling ends with -> pictures",
    )


def generator(network: Generator | PlacedGenerator, classes: int, to_pictures: nn.Module) -> Graph:
    """Returns the graph of a GAN's generator; `to_pictures` turns what it makes into pictures."""

    def inputs(rows: int, slots: int, draw: torch.Generator) -> dict[str, Tensor]:
        made = {"noise": torch.randn(rows, network.noise, generator=draw), **_condition(classes, rows, slots, draw)}
        if isinstance(network, PlacedGenerator):
            made["object_noise"] = torch.randn(rows, slots, network.object_noise, generator=draw)
        return made

    return Graph(Drawer(network, classes, to_pictures), inputs, "pictures", "noise, objects, places -> pictures")


def judge(network: Evaluator, size: int) -> Graph:
    """Returns the graph of an evaluator of pictures of `size`."""

    def inputs(rows: int, slots: int, draw: torch.Generator) -> dict[str, Tensor]:
        return {"pictures": torch.rand(rows, 3, size, size, generator=draw) * 2 - 1}

    return Graph(Judge(network), inputs, "logits", "pictures -> a logit per object")


def write_graph(graph: Graph, path: Path) -> None:
    """Writes a graph, weights included, as one ONNX file of opset OPSET."""
    example = graph.example()
    shapes = {name: {axis: torch.export.Dim(word) for axis, word in _axes(name).items()} for name in example}
    with warnings.catch_warnings(action="ignore"):  # the exporter's, of axes that have one name, as they shall
        torch.onnx.export(
            graph.module.eval(),
            (),
            path,
            kwargs=example,
            input_names=[*example],
            output_names=[graph.output],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def difference(graph: Graph, path: Path, rows: int, slots: int, seed: int = 1) -> float:
    """Returns the largest difference of a written graph's output from torch's, on drawn inputs of this size.

    It is infinite for a graph whose batch the exporter took for fixed.
    """
    import onnxruntime

    inputs = graph.inputs(rows, slots, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        ours = graph.module(**inputs)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    if any(not isinstance(i.shape[0], str) for i in session.get_inputs()):
        return float("inf")
    taken = {i.name: inputs[i.name].numpy() for i in session.get_inputs()}
    (theirs,) = session.run([graph.output], taken)
    return (torch.from_numpy(theirs) - ours).abs().max().item()
