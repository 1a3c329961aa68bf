"""The last adapter that was seen to be sound: what a run that diverges falls back to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainer.errors import ErrorCode, JobError


class LastFiniteAdapter:
    """Keeps copies of the trained parameters, on their device.

    Args:
        parameters: the trained ones.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._kept: list[Tensor] = []
        self.step = 0

    def check(self, values: Mapping[str, float], step: int) -> None:
        """Keep the adapter if all numbers are finite, its own norm among them; put the kept one back if not.

        Raises:
            JobError: `TRAINING_DIVERGED`.
        """
        values = {**values, "the adapter's norm": self.norm()}
        broken = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if broken is None:
            self.keep(step)
            return
        kept = f"the one of step {self.step}" if self._kept else "none: it went wrong before the first"
        if self._kept:
            put(self._parameters, self._kept)
        raise JobError(
            ErrorCode.TRAINING_DIVERGED,
            f"{broken} at step {step}; last sound adapter: {kept}",
            expected="a finite number",
            found=values[broken],
            hint="lower train.learning_rate, or set train.bf16 to false",
        )

    def keep(self, step: int) -> None:
        """Copy the adapter; on the device, into the same place each time."""
        self.step = step
        if not self._kept:
            self._kept = [parameter.detach().clone() for parameter in self._parameters]
            return
        torch._foreach_copy_(self._kept, [parameter.detach() for parameter in self._parameters])

    def norm(self) -> float:
        """Of the adapter as it is now: a loss is of the one before the step. Waits for the device."""
        norms = torch._foreach_norm([parameter.detach() for parameter in self._parameters])  # noqa: SLF001
        return float(torch.stack(norms).sum().item())


def put(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into parameters."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
