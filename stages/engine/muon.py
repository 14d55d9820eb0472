"""Muon: orthogonalised momentum for the weights of hidden layers (Jordan et al., kellerjordan.github.io/posts/muon)."""

import torch
from torch import Tensor, nn

from models.blocks import Attention, FeedForward

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that pulls singular values to about 1
ITERATIONS = 4  # 5 are usual, but the fifth lifts only values below a hundredth of the norm
MOMENTUM = 0.95
NARROWEST = 16  # Adam takes layers with fewer inputs or outputs than this: those at the network's ends
WIDEST = 256  # Adam also takes layers with more of both: on a CPU their products cost as much as the rest of the step


def orthogonalised(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns (k, m, n) matrices in `dtype` with the same singular vectors and singular values near 1.

    The values are between .68 and 1.20 if they were above a hundredth of the matrix's norm, and smaller otherwise.
    """
    a, b, c = COEFFICIENTS
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    tall = x.shape[1] > x.shape[2]
    x = (x.mT if tall else x).to(dtype)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def hidden_weights(network: nn.Module) -> list[Tensor]:
    """Returns the weights of convolutions and of linear layers in attention and feed-forward, except narrow and wide.

    Adam keeps layers that act on one vector per picture (time, labels, FiLM), whose matrices are as large but whose
    gradients come from few rows, and transposed convolutions.
    """
    inner = [m for m in network.modules() if isinstance(m, Attention | FeedForward)]
    layers: list[nn.Conv2d | nn.Linear] = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    layers += [m for block in inner for m in block.modules() if isinstance(m, nn.Linear)]
    weights = [m.weight for m in layers if m.weight.requires_grad]
    return [w for w in weights if NARROWEST <= min(w.shape[:2]) <= WIDEST]


def _rows(weight: Tensor) -> Tensor:
    """Returns a convolution's weight with its input channels last, as channels_last stores them, without a copy.

    The order of a matrix's columns does not change how it is orthogonalised.
    """
    return weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight


def _matrix(weight: Tensor) -> Tensor:
    return _rows(weight).flatten(1)


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None  # every hidden layer takes part in the loss
    return _matrix(weight.grad)


class Muon:
    """Updates weights as matrices (outputs, inputs x taps): w -= rate x .2 sqrt(longer side) x orthogonal.

    The factor makes a step as large as Adam's usual one (arXiv 2502.16982, section 2.2). Matrices of one shape are
    orthogonalised together, in `dtype`.
    """

    def __init__(self, weights: list[Tensor], weight_decay: float, dtype: torch.dtype):
        self.weight_decay, self.dtype = weight_decay, dtype
        shapes = dict.fromkeys(tuple(_matrix(w).shape) for w in weights)
        self.groups = [[w for w in weights if tuple(_matrix(w).shape) == shape] for shape in shapes]
        self.momenta = [torch.zeros(len(g), *_matrix(g[0]).shape, device=g[0].device) for g in self.groups]

    @torch.no_grad()
    def step(self, rate: float, bad: Tensor) -> None:
        """Updates the weights. Nothing changes if `bad`, a bool on the device: the gradient is not finite."""
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            gradient = torch.where(bad, momentum, torch.stack([_gradient(w) for w in group]))
            momentum.lerp_(gradient, 1 - MOMENTUM)
            steps = orthogonalised(gradient.lerp_(momentum, MOMENTUM), self.dtype)  # Nesterov's
            steps = torch.where(bad, 0.0, steps)
            size = rate * 0.2 * max(momentum.shape[1:]) ** 0.5
            for weight, step in zip(group, steps, strict=True):
                if self.weight_decay:
                    weight.mul_(1 - rate * self.weight_decay * ~bad)
                rows = _rows(weight)
                rows.add_(step.view_as(rows), alpha=-size)

    def state_dict(self) -> dict:
        return {"momenta": self.momenta}

    def load_state_dict(self, state: dict) -> None:
        for mine, kept in zip(self.momenta, state["momenta"], strict=True):
            mine.copy_(kept)
