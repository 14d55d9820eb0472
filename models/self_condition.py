"""Self-conditioning: a network whose last prediction of x_0 is an input of its next one (arXiv 2208.04202)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.condition import Condition
from models.diffusion import Diffusion


def takes_estimate(network: nn.Module) -> bool:
    """Returns True for a network that takes an estimate of x_0 as a further input."""
    return getattr(network, "self_condition", False)


def predict(
    network: nn.Module, x: Tensor, t: Tensor, condition: object, keep: Tensor | None, estimate: Tensor | None
) -> Tensor:
    """Returns the network's prediction (b, c, h, w) from x (b, c, h, w). Only a network that takes `estimate` gets it.

    `keep` (b,) bool: rows that get their condition; with None all do.
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
    """Wraps a network for one sampling of `condition`: each call gets the x_0 that the previous call predicted.

    What the network computes from the condition alone (its method `told`, if it has one) is computed in the first call.
    The state is of this object; the network has none.
    """

    def __init__(self, network: nn.Module, diffusion: Diffusion, condition: Condition):
        self.network, self.diffusion, self.condition = network, diffusion, condition
        self.estimate: Tensor | None = None
        self.known: dict[tuple[bool, ...], tuple[object, Tensor | None]] = {}  # `condition` and `keep` of a call

    def __call__(self, x: Tensor, t: int, keep: tuple[bool, ...]) -> Tensor:
        """x (b, c, h, w), t -> predictions (len(keep) b, c, h, w), one copy of the batch for each of `keep`.

        `keep`: whether a copy gets its condition. The first copy's x_0 is remembered: a guided one lies beyond
        what training showed.
        """
        copies = len(keep)
        if keep not in self.known:
            self.known[keep] = self._of_condition(x, keep)
        condition, rows = self.known[keep]
        times = torch.full((copies * len(x),), t, device=x.device)
        estimate = None if self.estimate is None else self.estimate.repeat(copies, 1, 1, 1)
        prediction = predict(self.network, x.repeat(copies, 1, 1, 1), times, condition, rows, estimate)
        if takes_estimate(self.network):
            self.estimate = self.diffusion.to_x0_and_noise(prediction[: len(x)], x, t)[0].detach()
        return prediction

    @torch.no_grad()
    def _of_condition(self, x: Tensor, keep: tuple[bool, ...]) -> tuple[object, Tensor | None]:
        """Returns what a call with `keep` is given as its condition and rows."""
        # filled on the device: a copy of the list would wait for it
        rows = torch.cat([torch.full((len(x),), told, device=x.device) for told in keep])
        condition = self.condition.repeat(len(keep))
        told: Callable[[Condition, Tensor, int], object] | None = getattr(self.network, "told", None)
        return (condition, rows) if told is None else (told(condition, rows, x.shape[2]), None)
