"""Where in a conversation's text the assistant speaks: the parts that are trained on.

Templates with `{% generation %}` blocks say it themselves. For all others it is derived from renderings. For the
assistant's turn i, three of them are compared:

- *before*: the messages up to it, with the generation prompt: what the model will be given;
- *after*: the messages up to and with it;
- *whole*: the whole row.

Where *before* is a beginning of *after*, and *after* of *whole*, the text between them is exactly what the model
must generate. Some templates render a turn differently once others follow it (they leave out what was thought in
earlier turns): then *after* is no beginning of *whole*, and each turn becomes an example of its own, *after*, with
*before* as its context: what the model will be given in that turn. Where even *before* is no beginning of *after*,
no mask is exact, and the row is refused rather than trained on wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trainer.data.examples.chat_template import CharacterSpan
from trainer.data.examples.model_tokenizer import ModelTokenizer, TemplateRefusedError
from trainer.data.rows import ChatRow
from trainer.errors import DataError, ErrorCode
from trainer.spec import DataSection, SplitTurns, TrainOn


@dataclass(frozen=True)
class MaskOptions:
    """What the job spec says about masks and lengths; see `DataSection`."""

    assistant_only: bool
    completion_only: bool
    last_turn: bool
    split: bool

    @classmethod
    def of(cls, data: DataSection) -> MaskOptions:
        """The rules of a job."""
        return cls(
            assistant_only=data.assistant_only_loss,
            completion_only=data.completion_only_loss,
            last_turn=data.train_on is TrainOn.LAST_TURN,
            split=data.split_turns is SplitTurns.AUTO,
        )

    def whole(self, row: ChatRow) -> bool:
        """Whether all of a conversation is trained on."""
        return not (self.completion_only if row.prompt_messages else self.assistant_only)


@dataclass(frozen=True)
class RenderedText:
    """A text, and which parts of it are trained on, in order; None means all of it."""

    text: str
    spans: tuple[CharacterSpan, ...] | None


def mark_chat(row: ChatRow, tokens: ModelTokenizer, rules: MaskOptions) -> tuple[RenderedText, ...]:
    """The texts of a conversation's examples: one, or one for each trained turn.

    Raises:
        DataError: the template refuses the row, no turn is trained on, or no mask is exact.
    """
    if rules.whole(row):
        return (_mark_all(row, tokens),)
    turns = _wanted(row, rules)
    if tokens.marks_generation and (marked := _mark_by_template(row, tokens, turns)) is not None:
        return (marked,)
    return _mark_by_rendering(row, tokens, rules, turns)


def _mark_all(row: ChatRow, tokens: ModelTokenizer) -> RenderedText:
    held = next((number for number, message in enumerate(row.messages) if not message.train), None)
    if held is not None and not row.prompt_messages:
        raise row.refuse(
            ErrorCode.DATASET_NOT_TRAINABLE,
            "a turn that is not to be trained on, where all tokens are",
            field=f"messages[{held}]",
            expected="data.assistant_only_loss true",
            found="false",
        )
    return RenderedText(_render(row, tokens, len(row.messages), prompt=False), None)


def _wanted(row: ChatRow, rules: MaskOptions) -> list[int]:
    """The numbers of the turns that are trained on."""
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
    return turns[-1:] if rules.last_turn else turns


def _mark_by_template(row: ChatRow, tokens: ModelTokenizer, turns: list[int]) -> RenderedText | None:
    """What the template's generation blocks say; None where it is open which block belongs to which turn."""
    try:
        text, spans = tokens.render_marked(row)
    except TemplateRefusedError:
        problem = _refused_by_template(row, "messages", len(row.messages))
    else:
        spoken = [number for number, message in enumerate(row.messages) if message.role == "assistant"]
        if turns == spoken:
            return RenderedText(text, tuple(spans))
        if len(spans) != len(spoken):
            return None
        chosen = [span for number, span in zip(spoken, spans, strict=True) if number in turns]
        return RenderedText(text, tuple(chosen))
    raise problem


def _mark_by_rendering(
    row: ChatRow, tokens: ModelTokenizer, rules: MaskOptions, turns: list[int]
) -> tuple[RenderedText, ...]:
    whole = _render(row, tokens, len(row.messages), prompt=False)
    marked = [_turn(row, tokens, number, whole) for number in turns]
    moved = next((turn for turn, part in zip(turns, marked, strict=True) if not whole.startswith(part.text)), None)
    if moved is None:
        return (RenderedText(whole, tuple(span for part in marked for span in part.spans or ())),)
    if not rules.split:
        raise not_derivable(
            row, moved, "the chat template renders a turn differently once others follow it (data.split_turns)"
        )
    return tuple(marked)


def _turn(row: ChatRow, tokens: ModelTokenizer, number: int, whole: str) -> RenderedText:
    """The row up to and with the assistant's turn `number`, and where in that text the turn lies."""
    if number == 0:
        raise not_derivable(row, number, "the assistant speaks first, so generation would have no prompt")
    before = _render(row, tokens, number, prompt=True)
    last = number + 1 == len(row.messages)
    after = whole if last else _render(row, tokens, number + 1, prompt=False)
    if not after.startswith(before):
        raise not_derivable(
            row,
            number,
            "the chat template opens the turn for generation in another way",
            hint="give data.chat_template one that renders what it prompts, or use rows of prompt and completion",
        )
    return RenderedText(after, ((len(before), len(after)),))


def _render(row: ChatRow, tokens: ModelTokenizer, count: int, *, prompt: bool) -> str:
    try:
        return tokens.render(row.messages[:count], prompt=prompt, tools=row.tools)
    except TemplateRefusedError:
        whole = count == len(row.messages) and not prompt
        problem = _refused_by_template(row, "messages" if whole else f"messages[0:{count}]", count)
    raise problem


def _refused_by_template(row: ChatRow, field: str, count: int) -> DataError:
    return row.refuse(
        ErrorCode.DATASET_ROW_INVALID,
        "the model's chat template refuses these messages",
        field=field,
        expected="roles and order that the template knows",
        found=f"{count} messages",
    )


_HINT: Final = "end each row with its only assistant turn, or set data.assistant_only_loss to false"


def not_derivable(row: ChatRow, number: int | None, reason: str, *, hint: str = _HINT) -> DataError:
    """The error for a conversation of which no mask would be exact."""
    return row.refuse(
        ErrorCode.DATASET_NOT_TRAINABLE,
        f"which tokens are the assistant's cannot be told exactly: {reason}",
        field="messages" if number is None else f"messages[{number}]",
        expected="renderings that begin with one another",
        found="different beginnings",
        hint=hint,
    )
