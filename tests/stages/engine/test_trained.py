"""Frozen networks hold the weights of autocast's layers in autocast's type: the same bits, without a cast a call."""

import argparse
import time
from contextlib import ExitStack
from copy import deepcopy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.condition import Condition
from models.layouts import LayoutPrior
from stages.ddpm import build_ddpm, pixel_sampler
from stages.engine.command import Context
from stages.engine.config import load
from stages.engine.errors import UserError
from stages.engine.export import read_about, save_export
from stages.engine.machine import peak_memory, reset_peak
from stages.engine.schema import Ldm
from stages.engine.trained import CAST, held_in, load_trained
from stages.gan import GanSampler, build_generator, load_gan
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


CPU = torch.device("cpu")
ABOUT = {"inputs": 6, "classes": 24, "most": 3}


def exported(root, about=ABOUT, **changes):
    """Writes an export of an untrained LDM whose description says `about` and `changes` of its section."""
    config = load(SMOKE, [f"root={root}"])
    context = Context(config, CPU, torch.float32, argparse.Namespace(config=SMOKE), 0.0, ExitStack())
    section = config.ldm.model_dump(mode="json")
    network, section["network"] = changes.pop("network", {}), section["network"]
    described = {"config": section | changes | {"network": section["network"] | network}, **about}
    save_export(context.export("ldm"), build_unet(config.ldm, 6, 24, 3).state_dict(), described)
    return context


def loaded(context):
    return load_trained(context, "ldm", Ldm, lambda s, a: build_unet(s, a["inputs"], a["classes"], a["most"]))


def test_an_export_is_loaded_as_it_describes_itself(tmp_path):
    assert loaded(exported(tmp_path)).network.inputs == 6


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"about": ABOUT | {"classes": 60_000_000}}, id="many classes"),
        pytest.param({"about": ABOUT | {"inputs": 10**9}}, id="wide latents"),
        pytest.param({"network": {"blocks": 10**9}}, id="many blocks"),
        pytest.param({"network": {"depth": 10**9}}, id="many layers"),
        pytest.param({"network": {"multipliers": [1] * 10**5}}, id="many levels"),
        pytest.param({"network": {"context": 10**18}}, id="wide tokens"),
        pytest.param({"timesteps": 10**10}, id="many timesteps"),
        pytest.param({"about": ABOUT | {"classes": 10**30}}, id="more than 64 bits"),
        pytest.param({"about": ABOUT | {"classes": -1}}, id="none"),
        pytest.param({"about": ABOUT | {"classes": "many"}}, id="text"),
        pytest.param({"about": {"config": 5}}, id="no section"),
        pytest.param({"about": {"inputs": 6}}, id="too little"),
    ],
)
def test_a_hostile_export_is_one_line_before_memory_or_time_is_spent(tmp_path, changes):
    """Within 1 s of the processor's time and 200 MiB."""
    context = exported(tmp_path, **changes)
    reset_peak(CPU)
    before, began = peak_memory(CPU), time.process_time()
    with pytest.raises(UserError) as fault:
        loaded(context)
    assert time.process_time() - began < 1
    assert peak_memory(CPU) - before < 200 * 2**20
    assert str(context.export("ldm")) in str(fault.value)


def test_a_hostile_width_of_attention_is_one_line_before_time_is_spent(tmp_path):
    """Heads are found by trying, for twenty minutes if the width is such a prime."""
    context = exported(tmp_path)
    hostile = {"attention": True, "body": "dcgan", "generator": {"channels": [8, 10**12 + 39, 8, 8, 8]}}
    section = context.config.gan.model_dump(mode="json")
    section |= hostile | {"generator": section["generator"] | hostile["generator"]}
    about = {"config": section, "classes": 24, "most": 3, "latent_channels": 6, "parents": {}}
    save_export(context.export("gan"), {"x": torch.zeros(1)}, about)
    began = time.process_time()
    with pytest.raises(UserError, match="another version"):
        load_gan(context)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("about", [[], 5, None, {"identity": 3}, {"parents": []}, {"seconds": "long"}])
def test_a_description_of_other_types_is_one_line(tmp_path, about):
    save_export(tmp_path / "export.safetensors", {"x": torch.zeros(1)}, about)
    with pytest.raises(UserError, match="is damaged"):
        read_about(tmp_path / "export.safetensors", "make it again")


def test_a_description_that_is_nested_too_deeply_is_one_line(tmp_path):
    """Python's parser would end in a traceback."""
    metadata = {"about": "[" * 100_000, "sha256": "0"}
    save_file({"x": torch.zeros(1)}, tmp_path / "export.safetensors", metadata)
    with pytest.raises(UserError, match="is damaged"):
        read_about(tmp_path / "export.safetensors", "make it again")
