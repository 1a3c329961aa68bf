"""The training loop of a differentially private run (DP-SGD, Abadi et al., arXiv:1607.00133).

The same loop as any run's, with other steps: rows are drawn independently instead of in epochs, gradients are
clipped row by row, noise is added, and the divisor is the number of rows expected, not the number drawn. A step
that draws no row is a step all the same: leaving it out would tell that none was drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor

from trainer.data.examples.example_set import Dataset
from trainer.spec import PrivacySection, TrainSection
from trainer.training.distributed import RankShare
from trainer.training.interruption import Interrupts
from trainer.training.loop import Report, Trainer
from trainer.training.loss import CausalLoss
from trainer.training.privacy.accounting import (
    Mechanism,
    new_accountant,
    plan_mechanism,
    require_within,
    spent,
    steps_seen,
)
from trainer.training.privacy.dp_optimizer import PrivateOptimizer
from trainer.training.privacy.per_example_gradients import RowGradients, unproven
from trainer.training.privacy.privacy_findings import DifferentialPrivacy
from trainer.training.privacy.randomness import SecretRandom
from trainer.training.progress import TrainingOutcome
from trainer.training.token_store import OrderedTokens

PROVED_ROWS: Final = 3
PROVED_BATCHES: Final = 2


class PrivateTraining(Trainer):
    """One differentially private run.

    Args:
        model: PEFT model; only its adapter is trained.
        loss: loss of that model, through its own modules.
        data: examples, one for each row.
        section: the optimizer's schedule; `per_device_train_batch_size` rows at most go through the model at once.
        privacy: the budget.
        report: as for `Trainer`.
        interrupts: as for `Trainer`; no state is kept, for randomness is never written down.
        random: where noise and rows come from.
        clock: as for `Trainer`.

    Raises:
        JobError: `PRIVACY_NOT_MET` or `PRIVACY_UNPROVEN`: the budget cannot be kept, or not with this model.
    """

    def __init__(
        self,
        model: Any,
        loss: CausalLoss,
        data: Dataset,
        section: TrainSection,
        privacy: PrivacySection,
        *,
        report: Report,
        interrupts: Interrupts | None = None,
        random: SecretRandom | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(model, loss, data, section, report=report, interrupts=interrupts, clock=clock)
        self._privacy = privacy
        self._secret = random or SecretRandom()
        self.mechanism = plan_mechanism(
            privacy,
            rows=len(data.train),
            expected_rows=min(
                len(data.train), section.per_device_train_batch_size * section.gradient_accumulation_steps
            ),
            steps=self._plan.total_steps,
        )
        self._accountant = new_accountant(privacy.accountant)
        self._private = PrivateOptimizer(self._optimizer, self.mechanism, self._secret)
        self._private.attach_step_hook(self._accountant.get_optimizer_hook_fn(self.mechanism.sample_rate))
        self._optimizer = self._private
        model.train()
        self._gradients_of = RowGradients(model, loss)
        self._mean_norm = torch.zeros((), device=self._total.device)
        self._prove()

    @property
    def sound_step(self) -> int:
        """0: which adapter was the last sound one, the rows say without noise; so none is handed out."""
        return 0

    def sound_state(self) -> None:
        """None: whoever went on from a state would need the randomness behind it."""

    def run(self) -> TrainingOutcome:
        """See `Trainer.run`."""
        try:
            return super().run()
        finally:
            self._gradients_of.close()

    def findings(self) -> DifferentialPrivacy:
        """What was spent.

        Raises:
            JobError: `PRIVACY_NOT_MET` or `PRIVACY_UNPROVEN`: more than the budget, or not what was accounted for.
        """
        counted = steps_seen(self._accountant)
        if counted != self._done or self._done != self.mechanism.steps:
            raise unproven(
                "steps that the accountant did not see", expected=self.mechanism.steps, found=(counted, self._done)
            )
        epsilon = spent(self._accountant, self.mechanism.delta)
        require_within(epsilon, self._privacy)
        return _described(self.mechanism, epsilon)

    def _prove(self) -> None:
        """On rows of different lengths, first alone among their like and then together."""
        by_length = sorted(range(len(self._store.lengths)), key=self._store.lengths.__getitem__)
        spread = by_length[:: max(1, len(by_length) // PROVED_ROWS)][:PROVED_ROWS]
        batches = [self._store.reorder(rows) for rows in (spread, by_length[:PROVED_BATCHES])]
        self._gradients_of.prove([ordered.batch(slice(0, len(ordered.lengths))) for ordered in batches])

    def _steps(self) -> Iterator[tuple[OrderedTokens, slice, RankShare]]:
        lengths = self._store.lengths
        for _ in range(self._done, self._plan.total_steps):
            rows = sorted(self._secret.choose(len(lengths), self.mechanism.sample_rate), key=lengths.__getitem__)
            share = self._ranks.share_rows(rows, lengths, self._store.target_counts, self._passes)
            yield self._store.reorder(rows or [0]), slice(0, len(rows)), share

    def _gradients_that_fit(self, ordered: OrderedTokens, rows: slice, _share: RankShare) -> Tensor:
        """Clipped gradients of a step's rows, some at a time; the optimizer adds the noise. Their loss, [1]."""
        device = self._total.device
        summed, norms = torch.zeros(1, dtype=torch.float64, device=device), torch.zeros((), device=device)
        size = self._section.per_device_train_batch_size
        for start in range(0, rows.stop, size):
            part = slice(start, min(start + size, rows.stop))
            loss, norm = self._gradients_of.take(ordered.batch(part))
            summed, norms = summed + loss, norms + norm.sum()
            if part.stop < rows.stop:
                self._private.signal_skip_step()
                self._private.step()
                self._private.zero_grad(set_to_none=True)
        if not rows.stop:
            self._gradients_of.none()
        self._mean_norm = norms.div(max(rows.stop, 1))
        return summed

    def _clip(self) -> Tensor:
        """Rows are clipped already; returns the mean norm of their gradients before that, on the device."""
        return self._mean_norm


def _described(mechanism: Mechanism, epsilon: float) -> DifferentialPrivacy:
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
