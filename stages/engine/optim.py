"""Adam and Muon with a learning rate that is a function of the step, clipping, and a guard against bad gradients."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from stages.engine.averaging import GradientAverage
from stages.engine.log import Metric
from stages.engine.muon import Muon, hidden_weights
from stages.engine.sums import stacked


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: str) -> float:
    """Returns the rate at 0-based `step` of `steps`: linear warm-up, then constant, or linear or cosine decay to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    match decay:
        case "constant":
            return peak
        case "linear":
            return peak * (1 - progress)
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * progress))
    raise ValueError(f"unknown decay {decay!r}")


class _GuardedAdam(torch.optim.AdamW):
    """AdamW. Its fused step changes nothing if `found_inf`, which torch does not declare, is not 0."""

    found_inf: Tensor


class Optimizer:
    """Updates one network: backward pass, mean over processes, clipping, a guarded step of Adam.

    With `optimizer: muon` the hidden layers' weights take Muon's steps, with products in `dtype`. A gradient that is
    not finite leaves weights and moments unchanged: fused Adam takes the verdict (`found_inf`) as a tensor, so nothing
    waits for the device. `bad_step` records the first such step. The loop checks it at the next log line or
    checkpoint, and stops the run before anything is saved.
    """

    def __init__(self, network: nn.Module, settings, dtype: torch.dtype = torch.float32):
        self.settings = settings
        self.named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
        self.watch_layers = False
        self.layer_norms: dict[str, Tensor] = {}  # norm of each weight's gradient at the last update
        self.factor = 1.0  # of the learning rate, for a task that lowers it during training
        self.parameters = [p for _, p in self.named]
        self.average = GradientAverage(self.parameters)
        hidden = hidden_weights(network) if settings.optimizer == "muon" else []
        self.muon = Muon(hidden, settings.weight_decay, dtype) if hidden else None
        of_muon = {id(p) for p in hidden}
        decays = [p for p in self.parameters if p.ndim > 1 and id(p) not in of_muon]
        plain = [p for p in self.parameters if p.ndim <= 1]
        groups = [{"params": decays, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.adam = _GuardedAdam(
            [g for g in groups if g["params"]], lr=settings.learning_rate, betas=settings.betas, fused=True
        )
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=self.parameters[0].device)

    def update(self, loss: Tensor, step: int) -> Tensor:
        """Takes one step down `loss`. Returns the norm of the gradient before clipping, on the device."""
        self.add(loss, last=True)
        return self.take(step)

    def add(self, loss: Tensor, parts: int = 1, also: Sequence[Tensor] = (), last: bool = False) -> None:
        """Adds the gradient of one of `parts` equal parts of the batch, whose loss is its own mean, for `take`.

        `also`: further leaf tensors that need the gradient. `last`: this is the step's last backward pass, during which
        gradients are averaged over the processes; without it `take` averages them.
        """
        part = loss if parts == 1 else loss / parts
        if last:
            self.average.begin()
        part.backward(inputs=[*self.parameters, *also])  # only these: other networks in the loss get no gradient

    def take(self, step: int) -> Tensor:
        """Takes one step down what was added. Returns the norm of the gradient before clipping, on the device."""
        s = self.settings
        rate = self.factor * learning_rate(step, s.steps, s.learning_rate, s.warmup, s.decay)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.average.finish()
        present = [p for p in self.parameters if p.grad is not None]
        if self.watch_layers:
            self.layer_norms = {n: p.grad.norm() for n, p in self.named if p.ndim > 1 and p.grad is not None}
        norm = nn.utils.get_total_norm([p.grad for p in present if p.grad is not None])
        if s.clip is not None:
            nn.utils.clip_grads_with_norm_(present, s.clip, norm)
        bad = ~torch.isfinite(norm)
        self.bad_step = torch.where(bad & (self.bad_step < 0), step, self.bad_step)
        self.adam.found_inf = bad.float()
        self.adam.step()
        if self.muon is not None:
            self.muon.step(rate, bad)
        for parameter in self.parameters:
            parameter.grad = None
        return norm

    def state_dict(self) -> dict:
        return self.adam.state_dict() | ({"muon": self.muon.state_dict()} if self.muon else {})

    def load_state_dict(self, state: dict) -> None:
        self.adam.load_state_dict({key: value for key, value in state.items() if key != "muon"})
        if self.muon is not None:
            self.muon.load_state_dict(state["muon"])


class Witness:
    """Keeps the metrics of the first step whose gradient was not finite, on the device and without waiting for it."""

    def __init__(self, optimizers: list[Optimizer]):
        self.optimizers = optimizers
        self._names: list[str] = []
        self._kept: Tensor | None = None
        self._good: Tensor | None = None  # no step was taken

    def note(self, metrics: Mapping[str, Metric]) -> None:
        """Records a step's metrics. Call after each step."""
        # not a sum over part of the batch: the loss shows the fault too
        plain = {name: value for name, value in metrics.items() if not isinstance(value, tuple)}
        if self._good is None or self._kept is None or [*plain] != self._names:
            kept = self.kept()
            if self._good is not None:
                plain |= {n: torch.where(self._good, plain.get(n, kept[n]), kept[n]) for n in kept}
            self._names, self._kept = [*plain], stacked(plain.values())
        else:
            self._kept = torch.where(self._good, stacked(plain.values()), self._kept)
        self._good = torch.stack([o.bad_step for o in self.optimizers]).amax() < 0

    def words(self) -> str:
        """Returns the kept metrics as in "loss nan, norm inf". Waits for the device."""
        return ", ".join(f"{name} {value.item():.4g}" for name, value in self.kept().items())

    def kept(self) -> dict[str, Tensor]:
        """Returns the metrics of the first bad step, or of the last one."""
        return {} if self._kept is None else dict(zip(self._names, self._kept.unbind(), strict=True))


def first_bad_step(optimizers: Iterable[Optimizer]) -> int | None:
    """Returns the first step whose gradient was not finite, or None. Waits for the device."""
    steps = [int(o.bad_step) for o in optimizers]
    return min((s for s in steps if s >= 0), default=None)
