"""Detects divergence, and restores the last adapter whose loss, gradient norm and parameters were finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainer.errors import ErrorCode, JobError
from trainer.training.adapter import copy_parameters, restore_parameters


class LastFiniteAdapter:
    """Keeps copies of the trained parameters, on their device.

    Args:
        parameters: the trained parameters.

    Attributes:
        step: the step after which the copies were made; 0 before the first copy.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.step = 0
        self._parameters = parameters
        self._copies: tuple[Tensor, ...] = ()

    def check(self, values: Mapping[str, float], step: int) -> None:
        """Copies the adapter if all values are finite; otherwise restores the last copy.

        Args:
            values: numbers to check, by name, such as the loss and the gradient norm.
            step: number of optimizer steps so far.

        Raises:
            JobError: `TRAINING_DIVERGED`: a value or a parameter is NaN or infinite.
        """
        # The loss of a step is computed before its update, so it says nothing of the parameters that the update
        # produced: one infinite gradient makes them NaN while the logged loss is still finite.
        values = {**values, "the adapter's norm": self.adapter_norm()}
        broken = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if broken is None:
            self.keep(step)
            return
        restored = (
            f"that of step {self.step}"
            if self._copies
            else "none: training diverged before the first"
        )
        if self._copies:
            restore_parameters(self._parameters, self._copies)
        raise JobError(
            ErrorCode.TRAINING_DIVERGED,
            f"{broken} at step {step}; last finite adapter: {restored}",
            expected="a finite number",
            found=values[broken],
            hint="lower train.learning_rate, or set train.bf16 to false",
        )

    def keep(self, step: int) -> None:
        """Copies the adapter on its device. Later calls reuse the memory of the first one.

        Args:
            step: number of optimizer steps so far.
        """
        self.step = step
        if not self._copies:
            self._copies = copy_parameters(self._parameters)
            return
        # A few kernel launches instead of one for each of the adapter's hundreds of small matrices.
        torch._foreach_copy_(self._copies, [parameter.detach() for parameter in self._parameters])

    def adapter_norm(self) -> float:
        """Returns the sum of the parameters' L2 norms; waits for the device.

        Norms are not negative, so no two of them cancel: the sum is NaN or infinite if one of them is. One number
        has to come from the device instead of one for each parameter.
        """
        norms = torch._foreach_norm([parameter.detach() for parameter in self._parameters])  # noqa: SLF001
        return float(torch.stack(norms).sum().item())
