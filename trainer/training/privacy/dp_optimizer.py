"""Opacus's private optimizer with cryptographically secure noise.

Opacus clips, accumulates, scales and accounts. Its default noise comes from torch's generator, whose seed is
public here; its secure mode needs a package without a release for this version of torch. So the noise comes from
`trainer.training.privacy.randomness`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed

from trainer.training.privacy.accounting import Mechanism
from trainer.training.privacy.randomness import SecretRandom
from trainer.training.privacy.row_coupling import unproven

_ROUNDING: Final = 1 - 1e-6
"""Factor by which the clipping bound is lowered; float32 has a relative precision of 6e-8."""


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus has no types
    """Makes the step of DP-SGD (Abadi et al., arXiv:1607.00133, algorithm 1).

        g = (sum over drawn rows of clip(g_row, C) + N(0, (zC)²)) / expected rows

    with C = `max_grad_norm`, z = `noise_multiplier` and clip(g, C) = g · min(1, C / ‖g‖). Then the wrapped
    optimizer updates the parameters by g. What it does with g, and any later use of the weights, is
    post-processing: it spends no further privacy.

    Args:
        optimizer: the wrapped optimizer, such as AdamW.
        mechanism: clipping bound, noise and expected number of rows.
        random: source of the noise.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, mechanism: Mechanism, random: SecretRandom
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.max_grad_norm,
            expected_batch_size=mechanism.expected_rows,
            # "mean" divides the noisy sum by the expected number of rows, which is public. Dividing by the number
            # drawn would reveal something of which rows were in the step.
            loss_reduction="mean",
        )
        self._random = random
        self._has_moved = False

    def clip_and_accumulate(self) -> None:
        """Clips the gradient of each row of a micro-batch to the norm C, and adds them to the sum.

        In float32 throughout, whatever type the parameters have. Opacus converts the clipped gradients to that
        type: to 16 bits, their norm may then exceed C by rounding.
        """
        samples = [parameter.grad_sample.float() for parameter in self.params]
        _check_processed_flag([parameter.grad_sample for parameter in self.params])
        # ‖g‖² = Σ ‖g_p‖² over the parameters p: in float64, so that squares of small numbers do not vanish.
        squares = [sample.flatten(1).double().square().sum(1) for sample in samples]
        norms = torch.stack(squares).sum(0).sqrt()
        # A little below C: the products and sums below are rounded to float32.
        factors = (_ROUNDING * self.max_grad_norm / norms).clamp(max=1.0).float()
        for parameter, sample in zip(self.params, samples, strict=True):
            summed = torch.einsum("i,i...", factors, sample)
            parameter.summed_grad = (
                summed if parameter.summed_grad is None else parameter.summed_grad + summed
            )
            _mark_as_processed(parameter.grad_sample)

    def add_noise(self) -> None:
        """Adds N(0, (zC)²) to each coordinate of the sum of clipped gradients.

        Adding or removing one row changes the sum by at most C in L2 norm: this sensitivity is what the noise
        hides. The noise is added to the sum once per step, not per micro-batch. Otherwise its deviation would
        depend on their number.
        """
        deviation = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            summed = parameter.summed_grad
            _check_processed_flag(summed)
            # z · C, not z · C / rows: the noise belongs to the sum, which Opacus divides later.
            noise = self._random.normal(summed.shape, summed.device) * deviation
            # Added in float64 and rounded afterwards: rounding the noisy sum is post-processing, while noise that
            # is rounded first has gaps, from which low bits of the sum could be inferred.
            parameter.grad = (summed.double() + noise).to(parameter.dtype).view_as(parameter)
            _mark_as_processed(summed)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Clips and accumulates; then, unless the step is skipped, adds noise and updates the parameters.

        Raises:
            JobError: `PRIVACY_UNPROVEN`: the first step with a learning rate above 0 left a parameter unchanged.
        """
        # Noise changes every coordinate, so a parameter that did not change was not updated from the noisy
        # gradient. Checked in one step only, because the check copies all parameters.
        if self._has_moved or not any(group["lr"] > 0 for group in self.param_groups):
            return super().step(closure)
        before = [parameter.detach().clone() for parameter in self.params]
        result = super().step(closure)
        if self._is_last_step_skipped:
            return result
        same = [torch.equal(old, new) for old, new in zip(before, self.params, strict=True)]
        if any(same):
            raise unproven(
                "a step left weights as they were",
                expected="noise on every parameter",
                found=f"{sum(same)} of {len(same)} parameters unchanged",
            )
        self._has_moved = True
        return result
