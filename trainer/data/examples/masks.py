"""Which characters of a rendered conversation are the assistant's: the parts that are trained on.

A template with `{% generation %}` blocks marks them itself. For every other template they follow from renderings.
For the assistant's turn i, three of them are compared:

- *before*: the messages before turn i, with the generation prompt: the input from which the model generates the
  turn;
- *after*: the messages up to and including turn i;
- *complete*: all messages of the row.

If *before* is a prefix of *after*, and *after* a prefix of *complete*, the text between the two is exactly what
the model must generate. Some templates render a turn differently once others follow it (they omit the reasoning
of earlier turns), so *after* is no prefix of *complete*. Then each turn becomes an example of its own: *after*,
with *before* as its context, which is the model's input in that turn. If even *before* is no prefix of *after*,
no mask is exact, and the row is refused rather than trained with a wrong mask.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from trainer.data.examples.chat_template import CharacterSpan
from trainer.data.examples.model_tokenizer import ModelTokenizer, TemplateRefusedError
from trainer.data.rows import ChatRow
from trainer.errors import DataError, ErrorCode
from trainer.spec import DataSection, SplitTurns, TrainOn


@dataclass(frozen=True)
class MaskOptions:
    """Keys of the job spec's `data` section that decide about masks.

    Attributes:
        assistant_only: `assistant_only_loss`.
        completion_only: `completion_only_loss`.
        last_turn: `train_on: last_turn`.
        split_turns: `split_turns: auto`.
    """

    assistant_only: bool
    completion_only: bool
    last_turn: bool
    split_turns: bool

    @classmethod
    def from_section(cls, data: DataSection) -> MaskOptions:
        """Returns the options of a job."""
        return cls(
            assistant_only=data.assistant_only_loss,
            completion_only=data.completion_only_loss,
            last_turn=data.train_on is TrainOn.LAST_TURN,
            split_turns=data.split_turns is SplitTurns.AUTO,
        )


@dataclass(frozen=True)
class RenderedText:
    """A text and the spans of it that are trained on, in order; None means all of it."""

    text: str
    spans: tuple[CharacterSpan, ...] | None


def render_masked_texts(row: ChatRow, tokenizer: ModelTokenizer, options: MaskOptions) -> tuple[RenderedText, ...]:
    """Renders the texts of a conversation's examples: one, or one for each trained turn.

    Raises:
        DataError: the template refuses the row, no turn is trained on, or no mask is exact.
    """
    # A row with a prompt obeys `completion_only_loss`, any other conversation `assistant_only_loss`.
    if not (options.completion_only if row.prompt_messages else options.assistant_only):
        return (_render_all(row, tokenizer),)
    turns = _trained_turns(row, options)
    if tokenizer.marks_generation and (rendered := _mask_by_template(row, tokenizer, turns)) is not None:
        return (rendered,)
    return _mask_by_rendering(row, tokenizer, options, turns)


def _render_all(row: ChatRow, tokenizer: ModelTokenizer) -> RenderedText:
    excluded = next((number for number, message in enumerate(row.messages) if not message.train), None)
    if excluded is not None and not row.prompt_messages:
        raise row.refuse(
            ErrorCode.DATASET_NOT_TRAINABLE,
            "a turn that is not to be trained on, although all tokens are",
            field=f"messages[{excluded}]",
            expected="data.assistant_only_loss true",
            found="false",
        )
    return RenderedText(_render_turns(row, tokenizer, len(row.messages)), None)


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


def _mask_by_template(row: ChatRow, tokenizer: ModelTokenizer, turns: list[int]) -> RenderedText | None:
    """Returns the spans of the generation blocks; None if it is open which block belongs to which turn."""
    try:
        text, spans = tokenizer.template.render_marked(row)
    except TemplateRefusedError:
        error = _refused_by_template(row, tokenizer, "messages", len(row.messages))
    else:
        assistant_turns = [number for number, message in enumerate(row.messages) if message.role == "assistant"]
        if turns == assistant_turns:  # every block is trained on, whichever turn it belongs to
            return RenderedText(text, tuple(spans))
        if len(spans) != len(assistant_turns):
            return None
        trained = [span for number, span in zip(assistant_turns, spans, strict=True) if number in turns]
        return RenderedText(text, tuple(trained))
    raise error


def _mask_by_rendering(
    row: ChatRow, tokenizer: ModelTokenizer, options: MaskOptions, turns: list[int]
) -> tuple[RenderedText, ...]:
    """Returns one text with all spans if the rendering of each turn is a prefix of it, else one text a turn."""
    complete = _render_turns(row, tokenizer, len(row.messages))
    rendered = [_render_turn(row, tokenizer, number, complete) for number in turns]
    changed = [number for number, text in zip(turns, rendered, strict=True) if not complete.startswith(text.text)]
    if not changed:
        return (RenderedText(complete, tuple(span for text in rendered for span in text.spans or ())),)
    if len(rendered) > 1 and not options.split_turns:
        reason = "the chat template renders a turn differently once others follow it (data.split_turns)"
        raise mask_not_exact(row, changed[0], reason)
    return tuple(rendered)


def _render_turn(row: ChatRow, tokenizer: ModelTokenizer, number: int, complete: str) -> RenderedText:
    """Renders the row up to and including the assistant's turn `number`, and marks the turn in the text."""
    if number == 0:
        raise mask_not_exact(row, number, "the assistant speaks first, so generation would have no prompt")
    before = _render(row, tokenizer, number, prompt=True)
    is_last = number + 1 == len(row.messages)
    after = complete if is_last else _render_turns(row, tokenizer, number + 1)
    if not after.startswith(before):
        after = _render_with_moved_system(row, tokenizer, number, before)
    return RenderedText(after, ((len(before), len(after)),))


def _render_with_moved_system(row: ChatRow, tokenizer: ModelTokenizer, number: int, before: str) -> str:
    """Renders the row up to turn `number` with the system text before the text of the user turn that it answers.

    Some templates (that of Mistral 7B v0.3) print the system text in the last user turn, and only while no answer
    follows it. The model is then given the same text if the row has it in the user turn itself.

    Raises:
        DataError: the model would be given another text.
    """
    first, *turns = row.messages[: number + 1]
    last_user = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=None)
    if first.role == "system" and last_user is not None:
        turns[last_user] = replace(turns[last_user], content=f"{first.content}\n\n{turns[last_user].content}")
        moved = replace(row, messages=tuple(turns))
        with suppress(DataError):
            after = _render_turns(moved, tokenizer, len(turns))
            if after.startswith(before) and before == _render(moved, tokenizer, len(turns) - 1, prompt=True):
                return after
    names = ", ".join(sorted(tokenizer.template.variables))
    raise mask_not_exact(
        row,
        number,
        "the chat template opens the turn for generation in another way",
        hint=f"{f'set data.chat_template_kwargs (the template reads {names}), ' if names else ''}"
        "give data.chat_template one that renders what it prompts, or use rows of prompt and completion",
    )


def _render_turns(row: ChatRow, tokenizer: ModelTokenizer, count: int) -> str:
    """Renders the first `count` messages, with the end of the last that the template leaves to the next turn."""
    text = _render(row, tokenizer, count, prompt=False)
    last = row.messages[count - 1]
    if last.role != "assistant":
        return text
    following = next((turn.role for turn in row.messages[count:]), "tool" if last.tool_calls else "user")
    return text + tokenizer.next_turn_stops.find(following)


def _render(row: ChatRow, tokenizer: ModelTokenizer, count: int, *, prompt: bool) -> str:
    """Renders the first `count` messages, with the generation prompt if `prompt` is set."""
    try:
        return tokenizer.template.render(
            row.messages[:count], prompt=prompt, tools=row.tools, arguments=row.template_arguments
        )
    except TemplateRefusedError:
        is_complete = count == len(row.messages) and not prompt
        error = _refused_by_template(row, tokenizer, "messages" if is_complete else f"messages[0:{count}]", count)
    raise error


def _refused_by_template(row: ChatRow, tokenizer: ModelTokenizer, field: str, count: int) -> DataError:
    turns = tuple(message for message in row.messages[:count] if message.role not in ("system", "developer"))
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
        tokenizer.template.render(row.messages, prompt=False, tools=row.tools, arguments=row.template_arguments)
    except TemplateRefusedError:
        return False
    return True


_HINT: Final = "end each row with its only assistant turn, or set data.assistant_only_loss to false"


def mask_not_exact(row: ChatRow, number: int | None, reason: str, *, hint: str = _HINT) -> DataError:
    """Returns the error for a conversation that has no exact mask; `number` is the turn, None for all."""
    return row.refuse(
        ErrorCode.DATASET_NOT_TRAINABLE,
        f"which tokens are the assistant's cannot be determined exactly: {reason}",
        field="messages" if number is None else f"messages[{number}]",
        expected="renderings that are prefixes of one another",
        found="different beginnings",
        hint=hint,
    )
