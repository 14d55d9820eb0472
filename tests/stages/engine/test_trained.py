"""Frozen networks hold the weights of autocast's layers in autocast's type: the same bits, without a cast a call."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.condition import Condition
from models.layouts import LayoutPrior
from stages.ddpm import build_ddpm, pixel_sampler
from stages.engine.command import Context
from stages.engine.config import load
from stages.engine.trained import CAST, held_in
from stages.gan import GanSampler, build_generator
from stages.ldm import build_unet, latent_sampler
from stages.vae import build_vae
from tests.conftest import SMOKE

ASKED = Condition.of_lists([[1, 5], [7]], 24, [[(0.2, 0.3), (0.7, 0.6)], [(0.5, 0.5)]])
KEYS = [(0, "test", i) for i in range(2)]


class Casts(TorchDispatchMode):
    """Counts copies to bfloat16 of as many numbers as a weight has."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes, self.count = sizes, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.count += args[0].shape in self.sizes
        return function(*args, **(kwargs or {}))


def context_of(*overrides):
    config = load(SMOKE, ["precision=bfloat16", "eval.steps=2", "eval.batch=2", *overrides])
    return Context(config, torch.device("cpu"), torch.bfloat16, None, 0.0, None)


def frozen(network):
    """Returns a network whose layers that start at zero do not hide the others."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval().requires_grad_(False)


def ldm():
    context = context_of("eval.guidance=2.0")
    vae, unet = frozen(build_vae(context.config.vae)), frozen(build_unet(context.config.ldm, 6, 24, 3))
    return context, (unet, vae), lambda u, v: latent_sampler(context, u, v, context.config.ldm, LayoutPrior(), None)


def ddpm(network):
    context = context_of(f"ddpm.network={network}", "ddpm.unet.channels=16", "ddpm.unet.self_condition=true")
    settings = context.config.ddpm
    made = frozen(build_ddpm(settings, 24, 3, 64))
    return context, (made,), lambda n: pixel_sampler(context, n, settings, LayoutPrior(), None)


def gan():
    overrides = ("gan.space=latents", "gan.stem=1", "gan.generator.channels=[16,8]", "gan.critic.channels=[8,16]")
    context = context_of(*overrides)
    vae, settings = frozen(build_vae(context.config.vae)), context.config.gan
    generator = frozen(build_generator(settings, 24, context.config.vae.latent_channels, 64))
    return context, (generator, vae), lambda g, v: GanSampler(context, g, settings, v, LayoutPrior())


@pytest.mark.parametrize("model", [ldm, lambda: ddpm("multiply-add"), lambda: ddpm("patches"), gan])
def test_weights_that_are_cast_once_give_the_bits_of_weights_cast_at_each_call(model):
    context, networks, sampler_of = model()
    held = [held_in(deepcopy(network), torch.bfloat16) for network in networks]
    layers = [m for network in networks for m in network.modules() if isinstance(m, CAST)]
    sizes = {layer.weight.shape for layer in layers}
    found = []
    for these in (networks, held):
        with Casts(sizes) as casts:
            pictures = sampler_of(*these).sample(ASKED, KEYS, context.config.eval)
        found.append((pictures, casts.count))
    (expected, before), (pictures, after) = found
    assert torch.equal(pictures, expected)
    assert pictures.isfinite().all()
    assert before > len(layers) / 2  # the encoder is not called
    assert after == 0


def test_in_float32_nothing_changes_and_norms_stay_as_they_are():
    network = nn.Sequential(nn.Conv2d(2, 2, 1), nn.GroupNorm(1, 2), nn.Linear(2, 2))
    assert {p.dtype for p in held_in(network, torch.float32).parameters()} == {torch.float32}
    types = [p.dtype for p in held_in(network, torch.bfloat16).parameters()]
    assert types == [torch.bfloat16] * 2 + [torch.float32] * 2 + [torch.bfloat16] * 2
