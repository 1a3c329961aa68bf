"""The steps of a differentially private run (DP-SGD, Abadi et al., arXiv:1607.00133).

Rows are drawn independently instead of in epochs (Poisson sampling), each row's gradient is clipped, noise is
added, and the divisor is the expected number of rows, not the number drawn. A step that draws no row is a step of
noise alone: leaving it out would reveal that none was drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.data.examples.example import Example
from trainer.spec import PrivacySection, TrainSection
from trainer.training.batches import StepPlan
from trainer.training.distributed import RankShare
from trainer.training.loss import CausalLoss
from trainer.training.methods.method import StepRows
from trainer.training.optimization import make_optimizer
from trainer.training.privacy.accounting import (
    new_accountant,
    plan_mechanism,
    require_within,
    spent,
)
from trainer.training.privacy.dp_optimizer import PrivateOptimizer
from trainer.training.privacy.gradient_equivalence import require_independent_rows
from trainer.training.privacy.per_example_gradients import RowGradients
from trainer.training.privacy.privacy_findings import DifferentialPrivacy
from trainer.training.privacy.randomness import SecretRandom
from trainer.training.privacy.row_coupling import (
    ModelState,
    require_fixed_positions,
    require_float_weights,
    unproven,
)
from trainer.training.step_policy import StepPolicy
from trainer.training.token_store import TokenStore


class PrivateStepPolicy(StepPolicy):
    """Draws rows with secret randomness, clips each row's gradient, adds noise, and counts what that spends.

    Args:
        model: PEFT model; only its adapter is trained.
        loss: loss of that model, computed through its own modules.
        examples: the training examples, one for each row.
        section: batch sizes and optimizer; `per_device_train_batch_size` rows make a micro-batch.
        privacy: the budget.
        max_length: most tokens of a row.
        random: source of noise and draws.

    Attributes:
        micro_batch: most rows of a forward pass.

    Raises:
        JobError: `PRIVACY_NOT_MET` or `PRIVACY_UNPROVEN`: the budget cannot be kept, or not with this model.
    """

    keeps_state = False
    """Resuming would need the secret randomness, which is never written down. And which adapter was the last
    finite one follows from the rows without noise, so none is handed out after a divergence."""

    def __init__(
        self,
        model: Any,
        loss: CausalLoss,
        examples: Sequence[Example],
        section: TrainSection,
        privacy: PrivacySection,
        *,
        max_length: int,
        random: SecretRandom | None = None,
    ) -> None:
        named = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self.parameters = list(named.values())
        self.warnings = []
        self._store = TokenStore(examples, self.device)
        self.plan = StepPlan(self._store.lengths, section)
        self.budget = max(self._store.lengths) * section.per_device_train_batch_size
        self._privacy = privacy
        self._random = random or SecretRandom()
        # What a step draws on average; how many rows it draws is random.
        rows_per_step = section.per_device_train_batch_size * section.gradient_accumulation_steps
        self.mechanism = plan_mechanism(
            privacy,
            rows=len(examples),
            expected_rows=min(len(examples), rows_per_step),
            steps=self.plan.total_steps,
        )
        self._accountant = new_accountant(privacy.accountant)
        self._private_optimizer = PrivateOptimizer(
            make_optimizer(named, section), self.mechanism, self._random
        )
        # The accountant counts a step where the optimizer makes it, whatever the loop around it believes.
        self._private_optimizer.attach_step_hook(
            self._accountant.get_optimizer_hook_fn(self.mechanism.sample_rate)
        )
        self.optimizer = self._private_optimizer
        config = model.get_base_model().config.to_dict()
        require_float_weights(config)
        require_fixed_positions(config, max_length)
        model.train()
        self._row_gradients = RowGradients(model, loss)
        # With 16-bit products the last bits of a row's gradient depend on the shape of its micro-batch. That is
        # small for one row, but one row would move those of all others: each row is then computed by itself.
        self.micro_batch = (
            1 if self._row_gradients.is_16_bit else section.per_device_train_batch_size
        )
        self._mean_norm = torch.zeros((), device=self.device)
        self._model_state = ModelState(model)
        require_independent_rows(
            self._row_gradients, self._store, self._model_state, self.micro_batch
        )

    def steps(self, done: int) -> Iterator[StepRows]:
        """Yields rows that are drawn independently for each step, from secret randomness; may be none."""
        lengths, target_counts = self._store.lengths, self._store.target_counts
        for _ in range(done, self.plan.total_steps):
            rows = sorted(
                self._random.choose(len(lengths), self.mechanism.sample_rate),
                key=lengths.__getitem__,
            )
            share = RankShare(
                rows, [target_counts[row] for row in rows], sum(lengths[row] for row in rows)
            )
            # A store is never empty: without a drawn row it has one, which the empty slice leaves out.
            yield StepRows(self._store.reorder(rows or [0]), slice(0, len(rows)), share)
        # After the last step, over all rows that were drawn: the comparison before the first saw only a few.
        self._model_state.require_unchanged()

    def compute_gradients(self, step: StepRows, number: int, random: tuple[Tensor, ...]) -> Tensor:  # noqa: ARG002
        """Clips the gradient of each row and adds it up; noise is added in `update`.

        Returns:
            float64 [1]: the sum of the losses of the step's trained tokens, in nats.
        """
        rows = step.rows
        losses, norms = (
            torch.zeros(1, dtype=torch.float64, device=self.device),
            self._mean_norm.new_zeros(()),
        )
        for start in range(0, rows.stop, self.micro_batch):
            part = slice(start, min(start + self.micro_batch, rows.stop))
            loss, row_norms = self._row_gradients.compute(step.ordered.batch(part))
            losses, norms = losses + loss, norms + row_norms.sum()
            # Clip and add up only; the step comes with the last micro-batch.
            if part.stop < rows.stop:
                self._private_optimizer.signal_skip_step()
                self._private_optimizer.step()
                self._private_optimizer.zero_grad(set_to_none=True)
        # Without a row nothing ran backward, and the optimizer would find no gradients to add the noise to.
        if not rows.stop:
            self._row_gradients.set_empty()
        self._mean_norm = norms.div(max(rows.stop, 1))
        return losses

    def update(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Adds noise to the sum of clipped gradients, divides by the expected rows, and makes the optimizer step.

        Returns:
            `sums`, and the mean norm of the rows' gradients before clipping; both on the device.
        """
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return sums, self._mean_norm

    def privacy_spent(self, steps: int) -> DifferentialPrivacy:
        """Returns what the run spent.

        Raises:
            JobError: `PRIVACY_NOT_MET` or `PRIVACY_UNPROVEN`: more than the budget, or the accountant saw another
                number of steps than the run made or planned.
        """
        # Entries of the history are (noise multiplier, sample rate, number of steps with these).
        counted = sum(int(count) for _, _, count in self._accountant.history)
        if counted != steps or steps != self.mechanism.steps:
            raise unproven(
                "steps that the accountant did not see",
                expected=self.mechanism.steps,
                found=(counted, steps),
            )
        epsilon = spent(self._accountant, self.mechanism.delta)
        require_within(epsilon, self._privacy)
        mechanism = self.mechanism
        return DifferentialPrivacy(
            epsilon=epsilon,
            delta=mechanism.delta,
            accountant=mechanism.accountant,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.max_grad_norm,
            sample_rate=mechanism.sample_rate,
            expected_rows=mechanism.expected_rows,
            rows=mechanism.rows,
            steps=mechanism.steps,
        )

    def close(self) -> None:
        """Removes the hooks that compute the gradients of rows from the model."""
        self._row_gradients.close()
