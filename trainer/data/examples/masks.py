"""Which characters of a rendered conversation are the assistant's: the parts that are trained on.

For the assistant's turn i, three renderings are compared:

- *before*: the messages before turn i;
- *after*: the messages up to and including turn i;
- *complete*: all messages of the row.

A template with `{% generation %}` blocks marks the assistant's text itself: the blocks of turn i are those that
*after* has and *before* has not. Without such blocks, *before* ends with the generation prompt: it is the input
from which the model generates the turn. If it is a prefix of *after*, the text between the two is exactly what the
model must generate.

If each *after* is a prefix of *complete*, one text holds all turns. Some templates render a turn differently once
others follow it (they omit the reasoning of earlier turns). Then each turn becomes an example of its own: *after*,
which has all that the turn says, with *before* as its context. If the blocks of earlier turns change, or *before*
is no prefix, no mask is exact, and the row is refused rather than trained with a wrong mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from trainer.data.examples.chat_template import CharacterSpan, TemplateRefusedError
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.rendered_text import RenderedText, RenderedTurn
from trainer.data.examples.turn_forms import (
    OPENED_THOUGHT,
    TurnForm,
    render_messages,
    render_prompt,
)
from trainer.data.rows import ChatRow
from trainer.errors import DataError, ErrorCode
from trainer.spec import DataSection, RowPart, SplitTurns, TrainOn


@dataclass(frozen=True)
class MaskOptions:
    """Keys of the job spec's `data` section that decide about renderings and their masks.

    Attributes:
        assistant_only: `assistant_only_loss`.
        completion_only: `completion_only_loss`.
        last_turn: `train_on: last_turn`.
        split_turns: `split_turns: auto`.
        allow_unrendered: `allow_unrendered`.
    """

    assistant_only: bool
    completion_only: bool
    last_turn: bool
    split_turns: bool
    allow_unrendered: frozenset[RowPart]

    @classmethod
    def from_section(cls, data: DataSection) -> MaskOptions:
        """Returns the options of a job."""
        return cls(
            assistant_only=data.assistant_only_loss,
            completion_only=data.completion_only_loss,
            last_turn=data.train_on is TrainOn.LAST_TURN,
            split_turns=data.split_turns is SplitTurns.AUTO,
            allow_unrendered=frozenset(data.allow_unrendered),
        )


def render_masked_texts(
    row: ChatRow, tokenizer: ModelTokenizer, options: MaskOptions
) -> tuple[RenderedText, ...]:
    """Renders the texts of a conversation's examples: one, or one for each trained turn.

    Raises:
        DataError: the template refuses the row, no turn is trained on, or no mask is exact.
    """
    # A row with a prompt obeys `completion_only_loss`, any other conversation `assistant_only_loss`.
    if not (options.completion_only if row.prompt_messages else options.assistant_only):
        return (_render_all(row, tokenizer),)
    turns = _trained_turns(row, options)
    if tokenizer.marks_generation:
        complete, _ = _render_marked(row, tokenizer, len(row.messages))
        return _join(
            row,
            options,
            complete,
            [_render_marked_turn(row, tokenizer, number) for number in turns],
        )
    complete = _render_turns(row, tokenizer, len(row.messages))
    return _join(
        row, options, complete, [_render_turn(row, tokenizer, number, complete) for number in turns]
    )


def _render_all(row: ChatRow, tokenizer: ModelTokenizer) -> RenderedText:
    excluded = next(
        (number for number, message in enumerate(row.messages) if not message.train), None
    )
    if excluded is not None and not row.prompt_messages:
        raise row.refuse(
            ErrorCode.DATASET_NOT_TRAINABLE,
            "a turn that is not to be trained on, although all tokens are",
            field=f"messages[{excluded}]",
            expected="data.assistant_only_loss true",
            found="false",
        )
    count = len(row.messages)
    return RenderedText(_render_turns(row, tokenizer, count), count, None)


def _trained_turns(row: ChatRow, options: MaskOptions) -> list[int]:
    """Returns the indices of the messages that are trained on."""
    turns = [
        number
        for number, message in enumerate(row.messages)
        if message.role == "assistant" and message.train and number >= row.prompt_messages
    ]
    if not turns:
        raise row.refuse(
            ErrorCode.DATASET_NOT_TRAINABLE,
            "no token of the row would be trained on",
            field="messages",
            expected="a message of the assistant that is trained on",
            found="none",
        )
    return turns[-1:] if options.last_turn else turns


def _join(
    row: ChatRow, options: MaskOptions, complete: str, rendered: Sequence[RenderedText]
) -> tuple[RenderedText, ...]:
    """Returns one text with all turns if the rendering of each is a prefix of it, else one text a turn."""
    changed = [text for text in rendered if not complete.startswith(text.text)]
    if not changed:
        turns = tuple(turn for text in rendered for turn in text.turns or ())
        return (RenderedText(complete, len(row.messages), turns),)
    if len(rendered) > 1 and not options.split_turns:
        reason = (
            "the chat template renders a turn differently once others follow it (data.split_turns)"
        )
        raise mask_not_exact(row, changed[0].count - 1, reason)
    return tuple(rendered)


def _render_marked_turn(row: ChatRow, tokenizer: ModelTokenizer, number: int) -> RenderedText:
    """Renders the row up to and including the assistant's turn `number`, with the blocks that this turn adds."""
    text, spans = _render_marked(row, tokenizer, number + 1)
    before, earlier = _render_marked(row, tokenizer, number) if number else ("", [])
    end = earlier[-1][1] if earlier else 0
    if spans[: len(earlier)] != earlier or text[:end] != before[:end]:
        raise mask_not_exact(
            row, number, "the chat template marks earlier turns differently once this one follows"
        )
    return RenderedText(
        text, number + 1, (RenderedTurn(number, tuple(_merge_adjacent(spans[len(earlier) :]))),)
    )


def _merge_adjacent(spans: Sequence[CharacterSpan]) -> list[CharacterSpan]:
    """Returns the spans, with one in place of several that touch."""
    merged: list[CharacterSpan] = []
    for start, end in spans:
        is_next = bool(merged) and merged[-1][1] == start
        merged[-1:] = [(merged[-1][0], end)] if is_next else [*merged[-1:], (start, end)]
    return merged


def _render_marked(
    row: ChatRow, tokenizer: ModelTokenizer, count: int
) -> tuple[str, list[CharacterSpan]]:
    """Renders the first `count` messages, and returns the text and the spans of its generation blocks."""
    try:
        return tokenizer.template.render_marked(replace(row, messages=row.messages[:count]))
    except TemplateRefusedError:
        field = "messages" if count == len(row.messages) else f"messages[0:{count}]"
        error = _refused_by_template(row, tokenizer, field, count)
    raise error


def _render_turn(
    row: ChatRow, tokenizer: ModelTokenizer, number: int, complete: str
) -> RenderedText:
    """Renders the row up to and including the assistant's turn `number`, and marks the turn in the text."""
    if number == 0:
        raise mask_not_exact(
            row,
            number,
            "the assistant speaks first, so generation would have no prompt",
            hint="set train: false (or weight: 0) in this turn: it then stays as context",
        )
    before = _render(row, tokenizer, number, prompt=True)
    is_last = number + 1 == len(row.messages)
    after = complete if is_last else _render_turns(row, tokenizer, number + 1)
    form = TurnForm.PLAIN
    if not after.startswith(before):
        form, after = _render_as_prompted(row, tokenizer, number, before)
    turn = RenderedTurn(number, ((len(before), len(after)),))
    return RenderedText(after, number + 1, (turn,), form)


def _render_as_prompted(
    row: ChatRow, tokenizer: ModelTokenizer, number: int, before: str
) -> tuple[TurnForm, str]:
    """Renders the row up to turn `number` in another form, so that it begins with the input of the turn.

    Raises:
        DataError: it does not in any form.
    """
    messages = replace(row, messages=row.messages[: number + 1])
    for form in (TurnForm.MOVED_SYSTEM, TurnForm.OPENED_THOUGHT):
        with suppress(TemplateRefusedError):
            after = render_messages(messages, form, tokenizer.template)
            if after.startswith(before) and before == render_prompt(
                messages, form, tokenizer.template
            ):
                return form, after + _stop_of_next_turn(row, tokenizer, number)
    names = ", ".join(sorted(tokenizer.template.variables))
    hints = (
        "give the assistant's turns reasoning_content" if before.endswith(OPENED_THOUGHT) else "",
        f"set data.chat_template_kwargs (the template reads {names})" if names else "",
        "give data.chat_template one that renders what it prompts",
        "use rows of prompt and completion",
    )
    reason = "the chat template opens the turn for generation in another way"
    raise mask_not_exact(row, number, reason, hint=", or ".join(filter(None, hints)))


def _render_turns(row: ChatRow, tokenizer: ModelTokenizer, count: int) -> str:
    """Renders the first `count` messages, with the end of the last that the template leaves to the next turn."""
    text = _render(row, tokenizer, count, prompt=False)
    return text + _stop_of_next_turn(row, tokenizer, count - 1)


def _stop_of_next_turn(row: ChatRow, tokenizer: ModelTokenizer, number: int) -> str:
    turn = row.messages[number]
    if turn.role != "assistant":
        return ""
    following = next(
        (after.role for after in row.messages[number + 1 :]), "tool" if turn.tool_calls else "user"
    )
    return tokenizer.next_turn_stops.find(following)


def _render(row: ChatRow, tokenizer: ModelTokenizer, count: int, *, prompt: bool) -> str:
    """Renders the first `count` messages, with the generation prompt if `prompt` is set."""
    try:
        return tokenizer.template.render(
            row.messages[:count], prompt=prompt, tools=row.tools, arguments=row.template_arguments
        )
    except TemplateRefusedError:
        is_complete = count == len(row.messages) and not prompt
        error = _refused_by_template(
            row, tokenizer, "messages" if is_complete else f"messages[0:{count}]", count
        )
    raise error


def _refused_by_template(
    row: ChatRow, tokenizer: ModelTokenizer, field: str, count: int
) -> DataError:
    turns = tuple(
        message for message in row.messages[:count] if message.role not in ("system", "developer")
    )
    only_system = len(turns) < count and _can_render(replace(row, messages=turns), tokenizer)
    hint = "write its text before the text of the first user turn, where the trained model will be given it too"
    return row.refuse(
        ErrorCode.DATASET_ROW_INVALID,
        f"the model's chat template {'has no system turn' if only_system else 'refuses these messages'}",
        field=field,
        expected="roles and order that the template knows",
        found=f"{count} messages",
        hint=hint if only_system else None,
    )


def _can_render(row: ChatRow, tokenizer: ModelTokenizer) -> bool:
    try:
        tokenizer.template.render(
            row.messages, prompt=False, tools=row.tools, arguments=row.template_arguments
        )
    except TemplateRefusedError:
        return False
    return True


_HINT: Final = "end each row with its only assistant turn, or set data.assistant_only_loss to false"


def mask_not_exact(
    row: ChatRow, number: int | None, reason: str, *, hint: str = _HINT
) -> DataError:
    """Returns the error for a conversation that has no exact mask; `number` is the turn, None for all."""
    return row.refuse(
        ErrorCode.DATASET_NOT_TRAINABLE,
        f"which tokens are the assistant's cannot be determined exactly: {reason}",
        field="messages" if number is None else f"messages[{number}]",
        expected="renderings that are prefixes of one another",
        found="different beginnings",
        hint=hint,
    )
