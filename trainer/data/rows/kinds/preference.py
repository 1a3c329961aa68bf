"""Preferences: two answers to one prompt, in the shapes in which they are published.

- `{"prompt": …?, "chosen": …, "rejected": …}`, all text or all lists of messages. Without a prompt, the common
  beginning of both answers is the prompt: complete messages, or text up to its last white space. Lists of messages
  may repeat the prompt, which is then the same messages, or the text of the first user turn.
- `{"conversations": […], "chosen": {…}, "rejected": {…}}`: a conversation, and the two turns that could follow it.
- `{"messages": […], "rejected_response": …}`: a conversation, and another text for its last turn.
- `{"instruction": …, "input": …?, "history": …?, "chosen": …, "rejected": …}`: as Alpaca, and two texts.

Source: TRL's type "preference" (the first), LLaMA-Factory (the second and last), ms-swift (the third).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from trainer.data.rows.kinds.alpaca import INSTRUCTION_COLUMNS, parse_instruction
from trainer.data.rows.kinds.messages import CHAT_COLUMNS, parse_messages
from trainer.data.rows.kinds.prompt_completion import PromptPart, join_parts, parse_part
from trainer.data.rows.kinds.sharegpt import parse_turn, parse_turns
from trainer.data.rows.row import Message, PreferenceRow, RowLocation
from trainer.data.rows.row_kind import Document, RowKind
from trainer.data.rows.values import check_text, describe, row_error

_PairParts = tuple[PromptPart, PromptPart, PromptPart]
"""Prompt, chosen answer, rejected answer."""


def _parse(location: RowLocation, document: Document) -> PreferenceRow:
    found = frozenset(key for key in _SHAPE_COLUMNS if document.get(key) is not None)
    if found not in _SHAPES:
        expected = "; or ".join(" and ".join(sorted(shape)) for shape in _SHAPES)
        raise row_error(
            location,
            "not the keys of one shape",
            expected=expected,
            found=", ".join(sorted(found)) or "none",
            hint="leave columns out with data.ignore_columns",
        )
    _check_instruction_columns(location, document)
    prompt, chosen, rejected = _SHAPES[found](location, document)
    if chosen == rejected:
        raise row_error(
            location,
            "both sides are the same",
            field="rejected",
            expected="another answer",
            found="the same",
        )
    return PreferenceRow(
        location.file,
        location.index,
        join_parts(location, document, prompt, "chosen", chosen),
        join_parts(location, document, prompt, "rejected", rejected),
    )


def _check_instruction_columns(location: RowLocation, document: Document) -> None:
    lost = next((key for key in INSTRUCTION_COLUMNS if document.get(key)), None)
    if lost is not None and document.get("instruction") is None:
        raise row_error(
            location,
            "wrong keys",
            field=lost,
            expected="none beside a prompt that is no instruction",
            found=describe(document[lost]),
            hint="leave columns out with data.ignore_columns",
        )


def _parse_answers(location: RowLocation, document: Document) -> tuple[PromptPart, PromptPart]:
    return parse_part(location, "chosen", document["chosen"]), parse_part(
        location, "rejected", document["rejected"]
    )


def _split_at_prompt(location: RowLocation, document: Document) -> _PairParts:
    """Returns the parts of a row with a prompt, which lists of messages may repeat."""
    prompt = parse_part(location, "prompt", document["prompt"], empty=True)
    chosen, rejected = _parse_answers(location, document)
    if isinstance(chosen, str) or isinstance(rejected, str):
        return prompt, chosen, rejected
    if isinstance(prompt, str):
        first = next((message.content for message in chosen if message.role == "user"), None)
        if first is None or first.strip() != prompt.strip():
            raise row_error(
                location,
                "a prompt as text beside lists of messages",
                field="prompt",
                expected="the text of their first user turn",
                found="another text",
                hint="leave the column out with data.ignore_columns, if the messages contain the prompt",
            )
        return _split_messages(location, chosen, rejected)
    count = len(prompt)
    repeats = chosen[:count] == rejected[:count] == prompt
    return (prompt, chosen[count:], rejected[count:]) if repeats else (prompt, chosen, rejected)


def _split_at_common_beginning(location: RowLocation, document: Document) -> _PairParts:
    """Returns the parts of a row whose answers each repeat the prompt."""
    chosen, rejected = _parse_answers(location, document)
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _split_texts(location, chosen, rejected)
    if isinstance(chosen, str) or isinstance(rejected, str):
        return "", chosen, rejected  # of different types, which is refused as they are joined
    return _split_messages(location, chosen, rejected)


def _common_length(first: PromptPart, second: PromptPart) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next(
        (number for number, (one, other) in pairs if one != other), min(len(first), len(second))
    )


def _split_messages(
    location: RowLocation, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> _PairParts:
    length = _common_length(chosen, rejected)
    _check_prompt_length(location, length, chosen, rejected)
    return chosen[:length], chosen[length:], rejected[length:]


def _split_texts(location: RowLocation, chosen: str, rejected: str) -> _PairParts:
    length = _common_length(chosen, rejected)
    # "yet" and "you" both begin with "y", which is no prompt: go back to the last white space. The white space
    # itself belongs to the answers, because tokenizers attach it to the word that follows.
    while length and not chosen[length - 1].isspace():
        length -= 1
    length = len(chosen[:length].rstrip())
    _check_prompt_length(location, length, chosen, rejected)
    return chosen[:length], chosen[length:], rejected[length:]


def _check_prompt_length(
    location: RowLocation, length: int, chosen: PromptPart, rejected: PromptPart
) -> None:
    if chosen != rejected and not 0 < length < min(len(chosen), len(rejected)):
        expected = "a prompt that both begin with"
        raise row_error(location, "no prompt", field="chosen", expected=expected, found="none")


def _split_at_next_turn(location: RowLocation, document: Document) -> _PairParts:
    """Returns a conversation, and the two turns that could follow it."""
    prompt = parse_turns(location, "conversations", document["conversations"])
    chosen, rejected = (
        (parse_turn(location, key, document[key]),) for key in ("chosen", "rejected")
    )
    return prompt, chosen, rejected


def _split_at_last_turn(location: RowLocation, document: Document) -> _PairParts:
    """Returns the conversation before its last turn, that turn, and the other text for it."""
    *before, last = parse_messages(location, "messages", document["messages"])
    if last.role != "assistant" or not before:
        expected = "a conversation whose last turn is the assistant's answer to an earlier turn"
        raise row_error(
            location,
            "nothing to reject",
            field="messages",
            expected=expected,
            found="another last turn",
        )
    text = check_text(location, "rejected_response", document["rejected_response"], empty=False)
    return tuple(before), (last,), (Message("assistant", text),)


def _split_at_instruction(location: RowLocation, document: Document) -> _PairParts:
    """Returns the turns up to an instruction, and the texts of the two turns that could follow it."""
    chosen, rejected = (
        (Message("assistant", check_text(location, key, document[key], empty=False)),)
        for key in ("chosen", "rejected")
    )
    return parse_instruction(location, document), chosen, rejected


_SHAPES: Final[Mapping[frozenset[str], Callable[[RowLocation, Document], _PairParts]]] = {
    frozenset({"prompt", "chosen", "rejected"}): _split_at_prompt,
    frozenset({"chosen", "rejected"}): _split_at_common_beginning,
    frozenset({"conversations", "chosen", "rejected"}): _split_at_next_turn,
    frozenset({"messages", "rejected_response"}): _split_at_last_turn,
    frozenset({"instruction", "chosen", "rejected"}): _split_at_instruction,
}
_SHAPE_COLUMNS: Final = frozenset[str]().union(*_SHAPES)

PREFERENCE: Final = RowKind(
    "preference",
    ("chosen", "rejected"),
    _parse,
    alternative=("messages", "rejected_response"),
    optional=("prompt", "conversations", *INSTRUCTION_COLUMNS, "system", *CHAT_COLUMNS),
    json_columns=("conversations", "messages", "history", *CHAT_COLUMNS),
)
