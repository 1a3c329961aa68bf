"""Held-out rows as tasks: an input for generation, and the answer that is expected (`evaluation.metrics`).

The input is what a user of the weights would give the model: everything before the last turn of the assistant that
may be trained on, with the generation prompt; of a row of prompt and completion, the prompt. The worker and
`trainer validate` draw and judge rows by the functions here, so that both judge the same ones.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from trainer.data.examples.answer_markers import AnswerMarkers, find_answer_markers
from trainer.data.examples.chat_template import ChatTemplate, TemplateRefusedError
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.row_encoding import add_start
from trainer.data.examples.task_draw import TaskDraw
from trainer.data.rows import ChatRow, CompletionRow, Message, Row, UnpairedPreferenceRow
from trainer.errors import DataError, ErrorCode
from trainer.spec import MAX_CHOICES, JobSpec


class NotJudged(StrEnum):
    """Why a held-out row is not judged."""

    NOT_DRAWN = "not_drawn"  # there are more rows than evaluation.max_rows
    NO_PROMPT = "no_prompt"  # plain text, or an answer that nothing comes before
    NO_ANSWER = (
        "no_answer"  # no turn of the assistant that may be trained on, or one without a text
    )
    CALL = "call"  # the answer calls a tool: a text does not say whether two calls are the same
    UNDESIRABLE = "undesirable"  # an answer whose label is false is none to give
    TOO_LONG = "too_long"  # beyond data.max_length, or beyond the base model's context


@dataclass(frozen=True)
class Task:
    """A held-out row as a task.

    Attributes:
        prompt: token ids of the input for generation.
        prompt_text: the same as a text.
        expected: the answer of the row, without a thought.
        stem: the input after which a choice follows, as a text: the prompt, and what the template puts between
            prompt and answer. None if the row's own thought would be between them.
        start: whether the tokenizer's start of text comes before `stem`.
        choice: the answer exactly as it follows `stem`.
        end: the stop token that ends the answer; None if none follows it.
    """

    prompt: list[int] = field(repr=False)
    prompt_text: str = field(repr=False)
    expected: str = field(repr=False)
    stem: str | None = field(repr=False)
    start: bool
    choice: str = field(repr=False)
    end: int | None = None


@dataclass(frozen=True)
class TaskRows:
    """The tasks of a job, in the order of their rows.

    Attributes:
        tasks: the rows that are judged.
        not_judged: reason → held-out rows that are not.
        choices: the distinct answers that `choice_accuracy` compares, sorted; empty without it.
        markers: what the template puts around an answer.
    """

    tasks: tuple[Task, ...] = ()
    not_judged: Mapping[NotJudged, int] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    markers: AnswerMarkers = field(default_factory=AnswerMarkers)

    @property
    def with_end(self) -> bool:
        """Whether a choice begins with another one: it could then never be the likelier of the two by itself."""
        return any(later.startswith(earlier) for earlier, later in itertools.pairwise(self.choices))


def read_tasks(
    draw: TaskDraw, tokenizer: ModelTokenizer, spec: JobSpec, *, context_length: int | None
) -> TaskRows:
    """Returns the tasks of the drawn rows.

    Args:
        draw: has been given every held-out row.
        tokenizer: tokenizer and chat template.
        spec: the job spec, with `evaluation.metrics`.
        context_length: positions that the base model was made for; None if its configuration does not say.

    Raises:
        DataError: no row can be judged, or the answers are none to choose from.
    """
    reader, section = TaskReader(tokenizer), spec.evaluation
    found = [reader.read(row, needs_stem=section.chooses) for row in draw.rows]
    answers = (
        sorted({task.choice for task in found if isinstance(task, Task)}) if section.chooses else []
    )
    longest = spec.data.max_length
    if context_length is not None:
        # What comes after the prompt must fit into the positions that the model knows.
        after = max([len(tokenizer.ids(answer)) for answer in answers], default=0)
        after = max(after, section.max_new_tokens) if section.generates else after
        longest = min(longest, context_length - after)
    tasks = [task for task in found if isinstance(task, Task) and len(task.prompt) <= longest]
    counts = Counter(task if isinstance(task, NotJudged) else NotJudged.TOO_LONG for task in found)
    counts[NotJudged.TOO_LONG] -= len(tasks)
    counts[NotJudged.NOT_DRAWN] = draw.not_drawn
    not_judged = {reason: counts[reason] for reason in NotJudged if counts[reason]}
    _require_tasks(tasks, not_judged)
    if section.chooses:
        _require_choices(answers)
    return TaskRows(tuple(tasks), not_judged, tuple(answers), reader.markers)


def _require_tasks(tasks: Sequence[Task], counts: Mapping[NotJudged, int]) -> None:
    if tasks:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    raise DataError(
        ErrorCode.DATASET_NOT_TRAINABLE,
        "no held-out row can be judged by evaluation.metrics",
        expected="held-out rows with a prompt and an answer",
        found=reasons or "no held-out row",
        hint="raise data.test_split_size, add files for evaluation, or leave evaluation.metrics out",
    )


def _require_choices(choices: Sequence[str]) -> None:
    """Requires more than one distinct answer, and not so many that they are no choices.

    Raises:
        DataError: `DATASET_NOT_TRAINABLE`.
    """
    if 2 <= len(choices) <= MAX_CHOICES:
        return
    raise DataError(
        ErrorCode.DATASET_NOT_TRAINABLE,
        "evaluation.metrics choice_accuracy needs answers to choose from",
        expected=f"2 to {MAX_CHOICES} distinct answers in the held-out rows",
        found=len(choices),
        hint="exact_match and token_f1 compare answers of any kind",
    )


class TaskReader:
    """Reads rows as tasks.

    Args:
        tokenizer: tokenizer and chat template.
    """

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def markers(self) -> AnswerMarkers:
        """What the chat template puts around an answer."""
        return (
            find_answer_markers(self._tokenizer.template)
            if self._tokenizer.has_template
            else AnswerMarkers()
        )

    def read(self, row: Row, *, needs_stem: bool) -> Task | NotJudged:
        """Returns the row's task, or why it has none.

        Of a pair, the chosen answer is expected.

        Raises:
            DataError: a choice cannot follow the row's prompt directly, although `needs_stem`.
        """
        if isinstance(row, UnpairedPreferenceRow) and not row.label:
            return NotJudged.UNDESIRABLE
        side = row.answer_row
        task: Task | NotJudged = NotJudged.NO_PROMPT
        if isinstance(side, ChatRow):
            task = self._read_chat(side)
        elif isinstance(side, CompletionRow):
            task = self._read_completion(side)
        if needs_stem and isinstance(task, Task) and task.stem is None:
            raise _thought_first(row)
        return task

    def _read_completion(self, row: CompletionRow) -> Task | NotJudged:
        if not row.completion.strip():
            return NotJudged.NO_ANSWER
        (plain,) = self._tokenizer.ids_of([row.prompt])
        prompt = add_start(plain, self._tokenizer).tolist()
        if not row.prompt:
            return NotJudged.NO_PROMPT
        end = self._tokenizer.append_id
        expected, choice = row.completion.strip(), row.completion
        return Task(prompt, row.prompt, expected, row.prompt, start=True, choice=choice, end=end)

    def _read_chat(self, row: ChatRow) -> Task | NotJudged:
        answers = [
            number
            for number, message in enumerate(row.messages)
            if message.role == "assistant" and message.train and number >= row.prompt_messages
        ]
        if not answers:
            return NotJudged.NO_ANSWER
        number = answers[-1]
        turn = row.messages[number]
        if turn.tool_calls:
            return NotJudged.CALL
        expected = self.markers.cut(turn.content)
        if not expected:
            return NotJudged.NO_ANSWER
        if number == 0:
            return NotJudged.NO_PROMPT
        template = self._tokenizer.template
        prompt = _render(row, number, template, prompt=True)
        complete = _render(row, number + 1, template, prompt=False)
        between, found, after = complete.removeprefix(prompt).partition(expected)
        is_direct = not turn.reasoning_content and turn.content.strip() == expected
        # A template that renders the turn otherwise than it prompts it has the answer follow the prompt.
        lead = between if found and complete.startswith(prompt) else ""
        next_ids = self._tokenizer.ids(after.strip())
        ends = bool(next_ids) and next_ids[0] in self._tokenizer.stop_ids
        return Task(
            self._tokenizer.ids(prompt),
            prompt,
            expected,
            prompt + lead if is_direct else None,
            start=False,
            choice=expected,
            end=next_ids[0] if ends else None,
        )


def _render(row: ChatRow, count: int, template: ChatTemplate, *, prompt: bool) -> str:
    """Renders the first `count` messages as training does.

    Raises:
        DataError: the template refuses them.
    """
    messages: tuple[Message, ...] = row.messages[:count]
    try:
        return template.render(
            messages, prompt=prompt, tools=row.tools, arguments=row.template_arguments
        )
    except TemplateRefusedError:
        error = row.refuse(
            ErrorCode.DATASET_ROW_INVALID,
            "the model's chat template does not prompt for this row's last answer",
            field=f"messages[0:{count}]",
            expected="roles and order that the template knows",
            found=f"{count} messages",
            hint="leave evaluation.metrics out, or give data.chat_template one that does",
        )
    raise error


def _thought_first(row: Row) -> DataError:
    return row.refuse(
        ErrorCode.DATASET_NOT_TRAINABLE,
        "evaluation.metrics choice_accuracy compares answers that follow the prompt directly",
        field=row.main_field,
        expected="a last answer without reasoning",
        found="reasoning before it",
        hint="exact_match and token_f1 compare what follows a thought",
    )
