"""Loads a trained network as its export describes it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from models.layouts import LayoutPrior
from stages.engine.command import Context
from stages.engine.export import load_export, of_this_version
from stages.engine.schema import Section


class Trained(NamedTuple):
    """The content of an export: the network, frozen on the device; its settings; its description; layouts."""

    network: nn.Module
    settings: Section
    about: dict
    layouts: LayoutPrior


def load_trained(
    context: Context, stage: str, section: type[Section], build: Callable[[Section, dict], nn.Module]
) -> Trained:
    """Loads the trained network of a stage's export.

    build(settings, about) makes the network. Raises UserError if the export is missing, damaged, or from another
    version.
    """
    path = context.export(stage)
    tensors, about = load_export(path, f"run {context.make(stage)}")
    with of_this_version(path, context.make(f"{stage} FRESH=1")):
        settings = section.model_validate(about["config"], strict=False)
        layouts, weights = LayoutPrior.split_from(tensors)
        network = build(settings, about)
        network.load_state_dict(weights)
    network.eval().requires_grad_(False).to(context.device, memory_format=torch.channels_last)
    return Trained(network, settings, about, layouts)
