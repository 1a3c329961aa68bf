"""Sums over the units of some steps, for the metrics that a method logs as means."""

from __future__ import annotations

import torch
from torch import Tensor


class StepSums:
    """Adds up the sums of steps until they are taken; on the device, so that no step waits for it.

    Args:
        zeros: the sums over no unit, float64 [sums].
    """

    def __init__(self, zeros: Tensor) -> None:
        self._zeros, self._sums, self._units = zeros, zeros.clone(), 0

    def add(self, sums: Tensor, units: int) -> None:
        """Adds the sums of a step, float64 [sums], and its number of units."""
        self._sums += sums
        self._units += units

    def take(self) -> tuple[Tensor, int]:
        """Returns the sums and the number of units since the last call."""
        taken = self._sums, self._units
        self._sums, self._units = self._zeros.clone(), 0
        return taken

    def state(self) -> tuple[float, ...]:
        """Returns what `restore` takes, the number of units as last; waits for the device."""
        return (*self._sums.tolist(), float(self._units))

    def restore(self, state: tuple[float, ...]) -> None:
        """Continues from the return value of `state`."""
        *sums, units = state
        self._sums = torch.tensor(sums, dtype=torch.float64, device=self._zeros.device)
        self._units = int(units)
