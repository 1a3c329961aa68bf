"""The figures of task metrics, as checkpoint, report and receipt have them. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from trainer.models import MAX_STATUS_STEPS, Strict

_Fraction = Annotated[float, Field(ge=0, le=1)]
_Rows = Annotated[int, Field(ge=0, le=MAX_STATUS_STEPS)]


class TaskFigures(Strict):
    """What one measurement of all judged rows gave; a metric that the job spec does not name is None.

    Attributes:
        exact_match: fraction of the rows whose generated answer is the expected one.
        token_f1: mean over the rows of the F1 of the generated answer's words.
        choice_accuracy: fraction of the rows whose own answer is the likeliest choice.
        cut: number of generated answers that `evaluation.max_new_tokens` ended; None where none are generated.
    """

    exact_match: _Fraction | None = None
    token_f1: _Fraction | None = None
    choice_accuracy: _Fraction | None = None
    cut: _Rows | None = None


class TaskSummary(Strict):
    """Task metrics of a run.

    Attributes:
        judged: number of held-out rows that were judged.
        not_judged: reason → number of held-out rows that were not.
        choices: number of distinct answers that `choice_accuracy` compared; 0 without it.
        before: the figures before the first step.
        after: those of the adapter that the result contains.
    """

    judged: _Rows
    not_judged: dict[str, _Rows]
    choices: _Rows
    before: TaskFigures
    after: TaskFigures

    def changes(self) -> Iterator[tuple[str, float, float]]:
        """Yields name, value before and value after of each metric."""
        after = self.after.model_dump(exclude={"cut"})
        for name, value in self.before.model_dump(exclude={"cut"}, exclude_none=True).items():
            yield name.replace("_", " "), value, after[name]

    def counts(self) -> dict[str, int]:
        """Returns what the figures rest on, by name."""
        cut = {"cut before": self.before.cut, "cut after": self.after.cut}
        choices = {"choices": self.choices} if self.choices else {}
        skipped = {name.replace("_", " "): count for name, count in self.not_judged.items()}
        return {"judged": self.judged, **skipped, **choices} | {
            name: count for name, count in cut.items() if count is not None
        }
