"""Self-conditioning: a network whose last prediction of x_0 is an input of its next one (arXiv 2208.04202)."""

import torch
from torch import Tensor, nn

from models.condition import Condition
from models.diffusion import Diffusion


def takes_estimate(network: nn.Module) -> bool:
    """Returns True for a network that takes an estimate of x_0 as a further input."""
    return getattr(network, "self_condition", False)


def predict(
    network: nn.Module, x: Tensor, t: Tensor, condition: Condition, keep: Tensor | None, estimate: Tensor | None
) -> Tensor:
    """Returns the network's prediction (b, c, h, w) from x (b, c, h, w). Only a network that takes `estimate` gets it.

    `keep` (b,) bool: rows that are told their condition; None tells all of them.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    return network(x, t, condition, keep, estimate) if takes_estimate(network) else network(x, t, condition, keep)


@torch.no_grad()
def first_estimate(
    network: nn.Module,
    diffusion: Diffusion,
    xt: Tensor,
    t: Tensor,
    condition: Condition,
    keep: Tensor | None,
    first_row: int,
) -> Tensor | None:
    """Returns an estimate of x_0 (b, c, h, w) for training: a prediction without one for every other row, else zeros.

    Half of the rows of a global batch, of which `first_row` is this one's first, learn without an estimate
    (section 3.2). None where the network takes none.
    """
    if not takes_estimate(network):
        return None
    half = slice(first_row % 2, None, 2)
    estimate = torch.zeros_like(xt)
    if not len(xt[half]):  # a single row, whose turn it is not
        return estimate
    prediction = predict(network, xt[half], t[half], condition[half], None if keep is None else keep[half], None)
    estimate[half] = diffusion.to_x0_and_noise(prediction, xt[half], t[half])[0]
    return estimate


class Remembering:
    """A network as one sampling calls it: each call is given the x_0 that the call before predicted.

    The state is of this object; the network has none.
    """

    def __init__(self, network: nn.Module, diffusion: Diffusion):
        self.network, self.diffusion = network, diffusion
        self.estimate: Tensor | None = None

    def __call__(self, x: Tensor, t: int, condition: Condition, keep: list[bool]) -> Tensor:
        """x (b, c, h, w), t -> predictions (len(keep) b, c, h, w), one copy of the batch for each of `keep`.

        `keep`: whether a copy is told its condition. The first copy's x_0 is remembered: a guided one lies beyond
        what training showed.
        """
        copies = len(keep)
        # filled on the device: a copy of the list would wait for it
        rows = torch.cat([torch.full((len(x),), told, device=x.device) for told in keep])
        times = torch.full((copies * len(x),), t, device=x.device)
        estimate = None if self.estimate is None else self.estimate.repeat(copies, 1, 1, 1)
        inputs = x.repeat(copies, 1, 1, 1), times, condition.repeat(copies)
        prediction = predict(self.network, *inputs, rows, estimate)
        if takes_estimate(self.network):
            self.estimate = self.diffusion.to_x0_and_noise(prediction[: len(x)], x, t)[0].detach()
        return prediction
