"""Patch discriminator (pix2pix, arXiv 1611.07004) and the adaptive weight of VQGAN."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.blocks import normalisation


class PatchDiscriminator(nn.Module):
    """Scores each patch: (b, 3, s, s) -> (b, 1, h, w). With group norm, real and fake do not mix statistics."""

    def __init__(self, channels: int = 64, layers: int = 3):
        super().__init__()
        width = channels
        body: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for layer in range(1, layers + 1):
            outputs = channels * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            body += [nn.Conv2d(width, outputs, 4, stride, 1), normalisation("group", outputs), nn.LeakyReLU(0.2)]
            width = outputs
        self.body = nn.Sequential(*body, nn.Conv2d(width, 1, 4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images).float()


def adaptive_weight(
    reconstruction: Tensor,
    adversarial: Tensor,
    last_layer: Tensor,
    limit: float,
    average: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:
    """Returns |grad of reconstruction| / |grad of adversarial| at the last layer, clamped to [0, limit].

    `average` averages a gradient over processes. From arXiv 2012.09841, equation 7; its code clamps at 1e4, which
    lets the weight run away.
    """
    ours, theirs = (average(gradient) for gradient in last_gradients(reconstruction, adversarial, last_layer))
    return ratio(ours, theirs, limit)


def last_gradients(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of both losses at the last layer's weight; their graphs are kept."""
    ours, theirs = (
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (reconstruction, adversarial)
    )
    return ours, theirs


def ratio(ours: Tensor, theirs: Tensor, limit: float) -> Tensor:
    """Returns `adaptive_weight` from the two gradients, averaged over all that share the batch."""
    return (ours.norm() / (theirs.norm() + 1e-4)).clamp(0, limit).detach()
