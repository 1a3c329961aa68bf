"""Early stopping: remembers the best evaluation with its adapter, and decides whether training continues.

Names and meaning are those of transformers' `EarlyStoppingCallback` and `load_best_model_at_end`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from trainer.spec import TrainSection
from trainer.training.adapter import copy_parameters


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
        """Compares an evaluation after `step` optimizer steps with the best one so far."""
        self.last = (step, loss)
        best = self.best
        # Two rules, as in transformers: an improvement resets the counter only if it exceeds the threshold, but
        # any lower loss makes its adapter the best one. Without the first rule, ever smaller gains would never
        # stop.
        is_improved = best is None or best.loss - loss > self._section.early_stopping_threshold
        stale = 0 if best is None or is_improved else best.stale + 1
        if best is not None and loss >= best.loss:
            self.best = replace(best, stale=stale)
            return
        # Copies take as much memory as the adapter, so none are made where nobody will ask for them.
        adapter = copy_parameters(self._parameters) if self._section.load_best_model_at_end else ()
        self.best = BestEvaluation(loss, step, stale, adapter)

    @property
    def exhausted(self) -> bool:
        """Whether the last `early_stopping_patience` evaluations all failed to improve the loss."""
        limit = self._section.early_stopping_patience
        return limit is not None and self.best is not None and self.best.stale >= limit
