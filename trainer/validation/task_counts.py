"""How many held-out rows task metrics will judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.data.examples.task_rows import TaskRows


@dataclass(frozen=True)
class TaskCounts:
    """Numbers of held-out rows by what task metrics make of them.

    Attributes:
        judged: number of rows that are judged.
        not_judged: reason → number of rows that are not.
        choices: number of distinct answers that `choice_accuracy` compares; 0 without it.
        prompt_tokens: number of tokens of the judged rows' prompts.
    """

    judged: int
    not_judged: Mapping[str, int]
    choices: int
    prompt_tokens: int

    @classmethod
    def of(cls, rows: TaskRows) -> TaskCounts:
        """Counts the rows."""
        reasons = {reason.value: count for reason, count in rows.not_judged.items()}
        return cls(
            len(rows.tasks),
            reasons,
            len(rows.choices),
            sum(len(task.prompt) for task in rows.tasks),
        )
