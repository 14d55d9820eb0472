"""Loads a trained network as its export describes it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from models.layouts import LayoutPrior
from stages.engine.command import Context
from stages.engine.export import load_export, of_this_version, refuse_other_size
from stages.engine.schema import Section

Network = TypeVar("Network", bound=nn.Module)
Settings = TypeVar("Settings", bound=Section)


CAST = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)  # the layers that autocast runs in bfloat16


def held_in(network: Network, dtype: torch.dtype) -> Network:
    """Turns the weights of a frozen network's convolutions and linear layers into `dtype`, that of autocast, in place.

    Autocast keeps its casts only of weights that require a gradient, and would cast these again at each call. The
    output is the same bit for bit. From then on the network must be called under autocast. A subclass stays as it is:
    it may compute in float32.
    """
    if dtype != torch.float32:
        for module in network.modules():
            if type(module) in CAST:
                module.to(dtype)
    return network


class Trained(NamedTuple, Generic[Network, Settings]):
    """The content of an export: the network, frozen on the device; its settings; its description; layouts."""

    network: Network
    settings: Settings
    about: dict
    layouts: LayoutPrior


@contextmanager
def _at_most(weights: int) -> Iterator[None]:
    """Context manager that raises RuntimeError as soon as a network of more weights than these is built in it."""
    thread, found = threading.get_ident(), 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal found
        found += threading.get_ident() == thread and parameter is not None
        if found > weights:
            raise RuntimeError(f"it describes a network of more than {weights} weights, which it does not hold")

    hook = register_module_parameter_registration_hook(count)  # of all modules, in all threads
    try:
        yield
    finally:
        hook.remove()


def filled(build: Callable[[], Network], weights: dict[str, Tensor]) -> Network:
    """Returns the network that `build` makes, with these weights, in its own types: released ones have 16 bits.

    It is built without memory and shapes are compared first, because a hostile header could name a network larger than
    memory; this also saves drawing random first weights. Raises RuntimeError if names or shapes differ.
    """
    with torch.device("meta"), _at_most(2 * len(weights)):
        network = build()  # which makes some layers twice
    types = {name: own.dtype for name, own in network.state_dict().items()}
    weights = {name: values.to(types.get(name, values.dtype), copy=True) for name, values in weights.items()}
    network.load_state_dict(weights, assign=True)
    if any(values.is_meta for values in (*network.parameters(), *network.buffers())):  # constants that no export holds
        with torch.random.fork_rng(devices=[]):
            network = build()
        network.load_state_dict(weights)
    return network


def load_trained(
    context: Context,
    stage: str,
    section: type[Settings],
    build: Callable[[Settings, dict], Network],
    autocast: bool = True,
) -> Trained[Network, Settings]:
    """Loads the trained network of a stage's export.

    build(settings, about) makes the network. With `autocast`, each call of it is under autocast (`held_in`). Raises
    UserError if the export is missing, damaged, from another version, or of pictures of another size.
    """
    path = context.export(stage)
    tensors, about = load_export(path, f"run {context.make(stage)}")
    refuse_other_size(path, about, context.config.data.size)
    with of_this_version(path, context.make(f"{stage} FRESH=1")):
        settings = section.model_validate(about["config"], strict=False)
        layouts, weights = LayoutPrior.split_from(tensors)
        network = filled(lambda: build(settings, about), weights)
    network = context.on_device(network.eval().requires_grad_(False))
    return Trained(held_in(network, context.dtype) if autocast else network, settings, about, layouts)
