"""Early stopping: remembers the best evaluation with its adapter, and decides whether training continues.

Names and meaning are those of transformers' `EarlyStoppingCallback` and `load_best_model_at_end`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from trainer.spec import TrainSection


@dataclass(frozen=True)
class BestEvaluation:
    """The best evaluation so far.

    Attributes:
        loss: the lowest loss on the held-out rows.
        step: number of optimizer steps before it.
        stale: number of evaluations since the last improvement by more than the threshold.
        adapter: copies of the trained parameters at `step`; empty without `load_best_model_at_end`.
    """

    loss: float
    step: int
    stale: int
    adapter: tuple[Tensor, ...]


class EarlyStopping:
    """Compares each evaluation with the best one so far.

    Args:
        section: `early_stopping_patience`, `early_stopping_threshold` and `load_best_model_at_end`.
        parameters: the trained parameters.

    Attributes:
        best: the best evaluation so far.
        last: step and loss of the most recent evaluation.
    """

    def __init__(self, section: TrainSection, parameters: Sequence[Tensor]) -> None:
        self._section = section
        self._parameters = parameters
        self.best: BestEvaluation | None = None
        self.last: tuple[int, float] | None = None

    def add_evaluation(self, loss: float, step: int) -> None:
        """Compare an evaluation after `step` optimizer steps with the best one so far."""
        self.last = (step, loss)
        best, margin = self.best, self._section.early_stopping_threshold
        if best is None:
            self.best = BestEvaluation(loss, step, 0, self._copy())
            return
        # Two rules, as in transformers: an improvement resets the counter only if it exceeds the threshold, but
        # any lower loss makes its adapter the best one. Without the first rule, ever smaller gains would never
        # stop.
        stale = 0 if best.loss - loss > margin else best.stale + 1
        if loss < best.loss:
            self.best = BestEvaluation(loss, step, stale, self._copy())
        else:
            self.best = BestEvaluation(best.loss, best.step, stale, best.adapter)

    @property
    def exhausted(self) -> bool:
        """Returns whether the last `early_stopping_patience` evaluations all failed to improve the loss."""
        limit = self._section.early_stopping_patience
        return limit is not None and self.best is not None and self.best.stale >= limit

    def describe(self, step: int, total: int) -> str:
        """Returns the warning for a run that stopped early."""
        limit = self._section.early_stopping_patience
        return f"stopped after step {step} of {total}: {limit} evaluations brought no better held-out loss"

    def _copy(self) -> tuple[Tensor, ...]:
        """Returns copies of the parameters on their device; none where the best adapter is not wanted."""
        if not self._section.load_best_model_at_end:
            return ()
        return tuple(parameter.detach().clone() for parameter in self._parameters)
