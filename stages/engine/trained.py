"""A trained network, as its export describes it."""

from collections.abc import Callable

import torch
from torch import nn

from stages.engine.checkpoint import load_export, of_this_version
from stages.engine.command import Context
from stages.engine.schema import Section


def load_trained(
    context: Context, stage: str, section: type[Section], build: Callable[[Section, dict], nn.Module]
) -> tuple[nn.Module, Section, dict]:
    """The network of a stage's export, frozen on the device, its settings, and what the export says of itself.

    build(settings, about) makes the network. Raises UserError where the export is missing, damaged, or not of this
    version.
    """
    path = context.export(stage)
    tensors, about = load_export(path, f"run {context.make(stage)}")
    with of_this_version(path, context.make(f"{stage} FRESH=1")):
        settings = section.model_validate(about["config"], strict=False)
        network = build(settings, about)
        network.load_state_dict(tensors)
    network.eval().requires_grad_(False).to(context.device, memory_format=torch.channels_last)
    return network, settings, about
