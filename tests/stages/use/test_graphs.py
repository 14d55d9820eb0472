"""Every kind of network that a configuration can name has a graph that gives what torch gives."""

import pytest
import torch
from torch import nn

from models.evaluator import Evaluator
from models.multiply_add_unet import MultiplyAddUNet
from models.patches import PatchUNet
from models.placed_gan import PlacedGenerator
from models.unet import UNet
from models.vqvae import VQVAE
from models.wgan import Generator
from stages import commands

for name in commands.EXPORT_NEEDS:
    pytest.importorskip(name, reason="needs the extra `export`: make setup-export")

from stages.use import graphs  # noqa: E402 (after what skips)

SMALL = {"channels": 16, "multipliers": (1,), "blocks": 1, "head_width": 8, "context": 16}  # a UNet


RESIDUAL = {"codes": 8, "quantizers": 2, "decay": 0.99, "commitment": 0.25, "dead_below": 1.0}


def drawn(network: nn.Module) -> nn.Module:
    """The network with weights that no layer starts at zero with, frozen."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval().requires_grad_(False)


def decoder(**options: object) -> graphs.Graph:
    network = drawn(VQVAE((8, 8, 8), blocks=1, middle_blocks=0, **options))
    return graphs.decoder(network, network.decode, (6, 8, 8))


def unet(**options: object) -> graphs.Graph:
    return graphs.denoiser(drawn(UNet(**SMALL, **options)), (6, 8, 8), 24, 100)


def patches() -> graphs.Graph:
    network = drawn(PatchUNet(24, 3, 8, side=32, places=True, **SMALL))
    return graphs.denoiser(network, (3, 32, 32), 24, 100)


def multiply_add() -> graphs.Graph:
    return graphs.denoiser(drawn(MultiplyAddUNet(24, 100, 8, places=True)), (3, 32, 32), 24, 100)


def placed_generator() -> graphs.Graph:
    """Of a GAN on latents: the graph ends behind the decoder."""
    generator = drawn(PlacedGenerator(24, 6, 8, 8, 16, 6, (16, 16), 8, False))
    network = drawn(VQVAE((8, 8, 8), middle_blocks=0, norm="none", quantizer="fsq", options={"levels": 7}))
    return graphs.generator(generator, 24, graphs.Decoder(network, network.decode))


def generator(condition: str) -> graphs.Graph:
    network = drawn(Generator(24, 3, 16, 16, (16, 8, 8), 8, condition, True, "dcgan", attention=True))
    return graphs.generator(network, 24, graphs.Decoder(nn.Identity(), nn.Identity()))


GRAPHS = {
    "unet of label sets with self-conditioning": lambda: unet(condition="vector", self_condition=True),
    "unet told turns, with self-conditioning": lambda: unet(places=True, turns=True, self_condition=True),
    "patches": patches,  # with places
    "multiply-add": multiply_add,
    "decoder of finite scalars": lambda: decoder(norm="none", quantizer="fsq", options={"levels": 7}),
    "decoder of residual codes": lambda: decoder(quantizer="residual", options=RESIDUAL),
    "decoder of latents": lambda: decoder(stem=1, decodes="latents"),
    "generator with places": placed_generator,
    "generator with batch norm": lambda: generator("batch-norm"),
    "evaluator": lambda: graphs.judge(Evaluator(5).eval(), 64),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_gives_what_torch_gives_for_any_batch_and_slots(name, tmp_path):
    graph = GRAPHS[name]()
    graphs.write_graph(graph, tmp_path / "graph.onnx")
    with torch.no_grad():
        made = graph.module(**graph.example())
    assert made.std() > 1e-3
    for rows, slots in ((1, 1), (3, 5)):
        assert graphs.difference(graph, tmp_path / "graph.onnx", rows, slots) < graphs.TOLERANCE
