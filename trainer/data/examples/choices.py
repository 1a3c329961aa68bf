"""The choices of a task as examples, of which the choice alone counts.

Source: multiple choice in EleutherAI's lm-evaluation-harness (`acc`): the choice whose tokens have the highest sum
of log-probabilities after the context, not divided by its length. Context and choice are tokenised together, as
there.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from trainer.data.examples.example import Example
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.row_encoding import add_start
from trainer.data.examples.task_rows import Task, TaskRows


def choice_examples(task: Task, rows: TaskRows, tokenizer: ModelTokenizer) -> list[Example]:
    """Returns an example for each choice of `rows`, in their order.

    Where a choice begins with another one, each is followed by the end of the answer: without it the longer choice
    could not win, since each further token lowers the sum.
    """
    stem = task.stem or ""
    context, *texts = tokenizer.ids_of([stem, *(stem + choice for choice in rows.choices)])
    if task.start:
        context, *texts = (add_start(ids, tokenizer) for ids in (context, *texts))
    end = [task.end] if rows.with_end and task.end is not None else []
    return [
        # Where a token crosses the boundary, the context's own tokens come first, as in generation and training.
        _make_example(
            [*(ids if ids[: len(context)] == context else context + tokenizer.ids(choice)), *end],
            len(context),
        )
        for choice, ids in zip(rows.choices, texts, strict=True)
    ]


def longest_choice(rows: TaskRows, tokenizer: ModelTokenizer) -> int:
    """Returns the most tokens that an example of a choice has; 0 without choices."""
    return max(
        (
            example.length
            for task in rows.tasks
            for example in choice_examples(task, rows, tokenizer)
        ),
        default=0,
    )


def _make_example(ids: Sequence[int], first: int) -> Example:
    # No token predicts index 0, so a choice without any context is judged from its second token on.
    counted = bytes(max(first, 1)) + b"\1" * (len(ids) - max(first, 1))
    return Example(array("i", ids), counted, stops=False)
