"""Sums of named scalars in one vector: its kernels are launched once a step, not once a name."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def stacked(values: Iterable[Tensor]) -> Tensor:
    """Returns scalars as one vector (n,) float32, without their graphs."""
    return torch.stack([value.detach().float() for value in values])


class Sums:
    """Adds up named scalars on their device, without waiting for it. Any step may bring new names or leave some out."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._vector: Tensor | None = None

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds scalars, each to the sum of its name."""
        if not values:
            return
        if self._vector is None:
            self._names, self._vector = list(values), stacked(values.values())
            return
        if late := [name for name in values if name not in self._names]:
            self._names += late
            self._vector = torch.cat([self._vector, self._vector.new_zeros(len(late))])
        if len(values) < len(self._names):
            values = {name: values.get(name, self._vector.new_zeros(())) for name in self._names}
        self._vector = self._vector + stacked(values[name] for name in self._names)

    def by_name(self) -> dict[str, Tensor]:
        """Returns each name's sum, a scalar on the device."""
        return {} if self._vector is None else dict(zip(self._names, self._vector.unbind(), strict=True))
