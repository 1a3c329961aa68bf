"""What a row is, once it is read: one shape for each kind of training, whatever the file called its columns.

The rows' `repr` leaves their text out: it ends up in logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from trainer.errors import DataError, ErrorCode

ROLES: Final = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class ToolCall:
    """A function that the assistant calls.

    Attributes:
        name: the function's.
        arguments: JSON object; templates write it out themselves.
        id: ties the tool's answer to the call, where the data has one.
    """

    name: str = field(repr=False)
    arguments: Mapping[str, object] = field(repr=False)
    id: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: one of `ROLES`.
        content: its text; may be empty.
        reasoning_content: what the assistant thought before it spoke, for templates that show it.
        tool_calls: functions that the assistant calls in this turn.
        tool_call_id: for the tool's turn, the call that it answers.
        name: of the speaker or the tool.
        train: whether this turn may be trained on. Only the assistant's turns ever are.
    """

    role: str
    content: str = field(repr=False)
    reasoning_content: str | None = field(default=None, repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = field(default=None, repr=False)
    name: str | None = field(default=None, repr=False)
    train: bool = True


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        file: name of the file as the provider gave it.
        index: zero-based index of the row; in JSONL, of the line it stands in.
    """

    file: str
    index: int

    def refuse(
        self,
        code: ErrorCode,
        reason: str,
        *,
        field: str | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> DataError:
        """The error that refuses this row; `raise row.refuse(...)`. None of the arguments may quote it."""
        return DataError(
            code,
            reason,
            file=self.file,
            row=self.index,
            field=field,
            expected=expected,
            found=found,
            hint=hint,
        )


@dataclass(frozen=True)
class ChatRow(Row):
    """A conversation, rendered by the model's chat template.

    Attributes:
        messages: its turns.
        tools: JSON schemas of the functions that the assistant may call; None where the row has no such column.
        given: how many of the messages are the prompt of a prompt/completion or preference row: not trained on.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, object], ...] | None = field(default=None, repr=False)
    given: int = 0


@dataclass(frozen=True)
class CompletionRow(Row):
    """`{"prompt": …, "completion": …}`: plain text that is continued by plain text."""

    prompt: str = field(repr=False)
    completion: str = field(repr=False)


@dataclass(frozen=True)
class TextRow(Row):
    """`{"text": …}`: plain text."""

    text: str = field(repr=False)


@dataclass(frozen=True)
class PreferenceRow(Row):
    """Two continuations of one prompt, of which the first is preferred; both sides are of one type."""

    chosen: ChatRow | CompletionRow
    rejected: ChatRow | CompletionRow


KIND_NAMES: Final[Mapping[type[Row], str]] = {
    ChatRow: "messages",
    CompletionRow: "prompt/completion",
    TextRow: "text",
    PreferenceRow: "preference",
}
"""What people call each kind of row."""


def kind_name(row: Row) -> str:
    """What people call this kind of row."""
    return KIND_NAMES[type(row)]


def row_texts(row: Row) -> tuple[str, ...]:
    """Every text of a row that ends up between special tokens."""
    if isinstance(row, PreferenceRow):
        return (*row_texts(row.chosen), *row_texts(row.rejected))
    if isinstance(row, ChatRow):
        thoughts = tuple(message.reasoning_content or "" for message in row.messages)
        return (*(message.content for message in row.messages), *filter(None, thoughts))
    if isinstance(row, CompletionRow):
        return (row.prompt, row.completion)
    return (row.text,) if isinstance(row, TextRow) else ()
