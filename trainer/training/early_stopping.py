"""Early stopping: which evaluation was the best so far, the adapter of then, and whether to wait any longer.

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
        loss: its loss; the lowest.
        step: optimizer steps done by then.
        stale: evaluations since the last one that was better by more than the threshold.
        adapter: copies of the trained parameters at `step`; none where nobody wants them back.
    """

    loss: float
    step: int
    stale: int
    adapter: tuple[Tensor, ...]


class EarlyStopping:
    """Watches evaluations.

    Args:
        section: `early_stopping_patience`, `early_stopping_threshold` and `load_best_model_at_end`.
        parameters: the trained ones, to copy from.
    """

    def __init__(self, section: TrainSection, parameters: Sequence[Tensor]) -> None:
        self._section = section
        self._parameters = parameters
        self.best: BestEvaluation | None = None
        self.last: tuple[int, float] | None = None

    def see(self, loss: float, step: int) -> None:
        """Take in an evaluation after `step` optimizer steps."""
        self.last = (step, loss)
        best, margin = self.best, self._section.early_stopping_threshold
        if best is None:
            self.best = BestEvaluation(loss, step, 0, self._copy())
            return
        stale = 0 if best.loss - loss > margin else best.stale + 1
        if loss < best.loss:
            self.best = BestEvaluation(loss, step, stale, self._copy())
        else:
            self.best = BestEvaluation(best.loss, best.step, stale, best.adapter)

    @property
    def exhausted(self) -> bool:
        """Whether so many evaluations in a row brought nothing that waiting is over."""
        limit = self._section.early_stopping_patience
        return limit is not None and self.best is not None and self.best.stale >= limit

    def verdict(self, step: int, total: int) -> str:
        """What the provider should know of an early end."""
        limit = self._section.early_stopping_patience
        return f"stopped after step {step} of {total}: {limit} evaluations brought no better held-out loss"

    def _copy(self) -> tuple[Tensor, ...]:
        if not self._section.load_best_model_at_end:
            return ()
        return tuple(parameter.detach().clone() for parameter in self._parameters)
