"""The choices of a task as examples, of which the choice alone counts.

Source: multiple choice in EleutherAI's lm-evaluation-harness (`acc`): the choice whose tokens have the highest sum
of log-probabilities after the context, not divided by its length. Context and choice are tokenised together, as
there.
"""

from __future__ import annotations

from array import array

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
    end = array("i", [task.end] if rows.with_end and task.end is not None else [])
    # No token predicts index 0, so a choice without any context is judged from its second token on.
    first = max(len(context), 1)
    examples = []
    for choice, ids in zip(rows.choices, texts, strict=True):
        # Where a token crosses the boundary, the context's own tokens come first, as in generation and training.
        begins = ids[: len(context)] == context
        own = ids if begins else context + array("i", tokenizer.ids(choice))
        answered = own + end
        counted = bytes(first) + b"\1" * (len(answered) - first)
        examples.append(Example(answered, counted, stops=False))
    return examples


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
