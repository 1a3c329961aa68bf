"""Opacus's private optimizer, with noise that the public seed does not tell.

Clipping, accumulating, scaling and accounting are Opacus's. Its own secure mode needs a package that has no
release for this torch, so the noise comes from `trainer.training.privacy.randomness`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed

from trainer.training.privacy.accounting import Mechanism
from trainer.training.privacy.per_example_gradients import unproven
from trainer.training.privacy.randomness import SecretRandom


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus has no types
    """Clips each row, sums, adds secret noise, divides by the expected number of rows, and steps.

    Args:
        optimizer: the one that takes the noisy gradient.
        mechanism: bound and noise.
        random: where the noise comes from.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, mechanism: Mechanism, random: SecretRandom) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.max_grad_norm,
            expected_batch_size=mechanism.expected_rows,
            loss_reduction="mean",
        )
        self._random = random
        self._has_moved = False

    def add_noise(self) -> None:
        """Add N(0, (noise_multiplier · max_grad_norm)²) to each coordinate of the sum, in float64."""
        deviation = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            summed = parameter.summed_grad
            _check_processed_flag(summed)
            noise = self._random.normal(summed.shape, summed.device) * deviation
            parameter.grad = (summed.double() + noise).to(parameter.dtype).view_as(parameter)
            _mark_as_processed(summed)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """See the class.

        Raises:
            JobError: `PRIVACY_UNPROVEN`: the first step with a learning rate above 0 left every weight as it was.
        """
        if self._has_moved or not any(group["lr"] > 0 for group in self.param_groups):
            return super().step(closure)
        before = [parameter.detach().clone() for parameter in self.params]
        result = super().step(closure)
        if not self._is_last_step_skipped:
            self._require_moved(before)
        return result

    def _require_moved(self, before: list[torch.Tensor]) -> None:
        same = [torch.equal(old, new) for old, new in zip(before, self.params, strict=True)]
        if any(same):
            raise unproven(
                "a step left weights as they were",
                expected="noise on every parameter",
                found=f"{sum(same)} of {len(same)} parameters unchanged",
            )
        self._has_moved = True
