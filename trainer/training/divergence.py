"""What happens when training diverges: the run ends, with the last adapter whose numbers were finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainer.errors import ErrorCode, JobError


class LastFiniteAdapter:
    """Keeps copies of the trained parameters, on their device.

    Args:
        parameters: the trained parameters.

    Attributes:
        step: the step of the copies; 0 where there are none.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.step = 0
        self._parameters = parameters
        self._copies: list[Tensor] = []

    def check(self, values: Mapping[str, float], step: int) -> None:
        """Keep the adapter if all numbers are finite; otherwise restore the one that was kept last.

        The adapter's own norm is checked too: the loss of a step is computed before its update.

        Args:
            values: numbers of the step by name.
            step: its number.

        Raises:
            JobError: `TRAINING_DIVERGED`.
        """
        values = {**values, "the adapter's norm": self.adapter_norm()}
        broken = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if broken is None:
            self.keep(step)
            return
        kept = f"that of step {self.step}" if self._copies else "none: training diverged before the first"
        if self._copies:
            copy_values(self._parameters, self._copies)
        raise JobError(
            ErrorCode.TRAINING_DIVERGED,
            f"{broken} at step {step}; last finite adapter: {kept}",
            expected="a finite number",
            found=values[broken],
            hint="lower train.learning_rate, or set train.bf16 to false",
        )

    def keep(self, step: int) -> None:
        """Copy the adapter on the device, into the same memory each time."""
        self.step = step
        if not self._copies:
            self._copies = [parameter.detach().clone() for parameter in self._parameters]
            return
        torch._foreach_copy_(self._copies, [parameter.detach() for parameter in self._parameters])

    def adapter_norm(self) -> float:
        """Returns the sum of the parameters' L2 norms, which is finite if and only if all are; waits."""
        norms = torch._foreach_norm([parameter.detach() for parameter in self._parameters])  # noqa: SLF001
        return float(torch.stack(norms).sum().item())


def copy_values(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into parameters, outside of any graph."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
