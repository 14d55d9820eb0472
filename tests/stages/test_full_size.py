"""The reports' networks at full size: checks their shapes, counts and prints their parameters (`pytest -rP`).

On torch's meta device, which has shapes without numbers, so nothing is initialised or computed. Critics switch
autocast off, which does not know meta; they are small enough for the CPU.
"""

import pytest
import torch

from models.condition import Condition
from models.patch_discriminator import PatchDiscriminator
from stages.ddpm import build_ddpm
from stages.engine.config import load
from stages.gan import build_critic, build_generator
from stages.ldm import build_unet
from stages.vae import build_vae
from tests.conftest import HERE


def section(name, stage, *overrides):
    return getattr(load(str(HERE / f"configs/{name}.yaml"), list(overrides)), stage)


def vae():
    network = build_vae(section("report", "vae"))
    return network, [(network.encoder, (2, 3, 64, 64), (2, 6, 8, 8)), (network.decoder, (2, 6, 8, 8), (2, 3, 64, 64))]


def discriminator():
    d = section("report", "vae").discriminator
    network = PatchDiscriminator(d.channels, d.layers)
    return network, [(network, (2, 3, 64, 64), (2, 1, 6, 6))]


def unet():
    network = build_unet(section("report", "ldm"), 6, 24, 3)
    return network, [(denoise(network), (2, 6, 8, 8), (2, 6, 8, 8))]


def generator():
    network = build_generator(section("report", "gan"), 24, 6, 64)
    return network, [(lambda noise: network(noise, labels()), (2, 64), (2, 3, 64, 64))]


def critic():
    network = build_critic(section("report", "gan"), 24, 6, 64)
    return network, [(lambda pictures: network(pictures, labels())[0], (2, 3, 64, 64), (2,))]


def ddpm():
    network = build_ddpm(section("ddpm-multiply-add", "ddpm"), 24, 3, 64)
    return network, [(denoise(network), (2, 3, 64, 64), (2, 3, 64, 64))]


def ddpm_up():
    network = build_ddpm(section("ddpm-multiply-add", "ddpm", "ddpm.paths=up"), 24, 3, 64)
    return network, [(denoise(network), (2, 3, 64, 64), (2, 3, 64, 64))]


def ddpm_cosine():
    settings = section("ddpm-cosine", "ddpm")
    network = build_ddpm(settings, 24, 3, 64)
    return network, [
        (lambda x: network(x, torch.tensor([0, settings.timesteps - 1]), labels()), *2 * ((2, 3, 64, 64),))
    ]


def auxiliary_critic():
    network = build_critic(section("gan-auxiliary", "gan"), 24, 6, 64)
    return network, [(lambda pictures: network(pictures, labels())[1], (2, 3, 64, 64), (2, 24))]


def generator_dcgan():
    network = build_generator(section("report", "gan", "gan.body=dcgan"), 24, 6, 64)
    return network, [(lambda noise: network(noise, labels()), (2, 64), (2, 3, 64, 64))]


def critic_attention():
    network = build_critic(section("report", "gan", "gan.attention=true"), 24, 6, 64)
    return network, [(lambda pictures: network(pictures, labels())[0], (2, 3, 64, 64), (2,))]


def labels():
    return Condition.of_lists([[0], [1]], 24).to(torch.get_default_device())


def denoise(network):
    return lambda x: network(x, torch.tensor([0, 999]), labels())


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (vae, 23_349_257),
        (discriminator, 2_766_529),
        (unet, 184_416_262),
        (generator, 8_280_387),
        (critic, 7_422_913),
        (ddpm, 30_540_291),
        (ddpm_up, 30_263_299),
        (ddpm_cosine, 30_540_291),
        (auxiliary_critic, 7_422_937),
        (generator_dcgan, 8_010_819),
        (critic_attention, 8_472_001),
    ],
)
def test_full_size(build, parameters):
    device = torch.device("cpu" if "critic" in build.__name__ else "meta")
    with device:
        network, shapes = build()
    count = sum(p.numel() for p in network.parameters())
    print(f"{build.__name__}: {count:,} parameters")
    network.eval()
    with torch.no_grad(), device:
        for function, given, expected in shapes:
            made = function(torch.randn(given))
            assert (tuple(made.shape), made.device) == (expected, device)
    assert count == parameters


def test_widths_are_the_reports():
    """Channels at each resolution, read from the networks and not from the configuration."""
    with torch.device("meta"):
        (network, _), (denoiser, _), (judge, _) = vae(), unet(), critic()
    convolutions = [m for m in network.encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert {128, 256, 512} <= {c.out_channels for c in convolutions}
    assert convolutions[0].out_channels == 128
    assert network.quantizer.codebook_size == 8192
    assert network.quantizer._codebook.embed.shape == (1, 8192, 6)
    first = next(m for m in denoiser.modules() if isinstance(m, torch.nn.Conv2d))
    assert (first.in_channels, first.out_channels) == (6, 192)
    widths = [m.out_channels for m in denoiser.modules() if isinstance(m, torch.nn.Conv2d)]
    assert max(widths[: len(widths) // 2]) == 768  # 192 x 4
    assert judge.score.in_features == 512 * 4 * 4
