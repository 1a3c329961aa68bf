"""Rows as they are after reading: one class for each kind of training data, whatever the file named its columns.

The `repr` of a row leaves out its text, because a `repr` may end up in a log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

from trainer.errors import DataError, ErrorCode
from trainer.spec.template_arguments import TemplateArgument

ROLES: Final = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class ToolCall:
    """A function call that the assistant makes.

    Attributes:
        name: name of the function.
        arguments: JSON object; the chat template serialises it.
        id: connects the tool's answer with this call; None if the data has no ids.
    """

    name: str = field(repr=False)
    arguments: Mapping[str, object] = field(repr=False)
    id: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: one of `ROLES`.
        content: text of the turn; may be empty.
        reasoning_content: the assistant's reasoning before the answer, for templates that render it.
        tool_calls: functions that the assistant calls in this turn.
        tool_call_id: in a turn of a tool, the id of the call that it answers.
        name: name of the speaker or of the tool.
        train: False excludes an assistant turn from the loss. Turns of other roles never enter it.
    """

    role: str
    content: str = field(repr=False)
    reasoning_content: str | None = field(default=None, repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = field(default=None, repr=False)
    name: str | None = field(default=None, repr=False)
    train: bool = True


@dataclass(frozen=True)
class RowLocation:
    """Where a row was read.

    Attributes:
        file: name of the file as the provider gave it.
        index: zero-based index of the row; in JSON lines, of its line.
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
        """Returns the error that refuses this row, for `raise row.refuse(...)`. No argument may quote the row."""
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
class Row(RowLocation):
    """A parsed row.

    Attributes:
        kind_name: name of the kind in messages and reports.
        main_field: the field that an error names if a row of this kind cannot be used at all.
        ignored_keys: number of keys of its messages that were left out by name (`data.ignore_message_keys`).
        for_evaluation: whether the split that its file belongs to is one for evaluation.
    """

    kind_name: ClassVar[str]
    main_field: ClassVar[str]

    ignored_keys: int = field(default=0, kw_only=True, compare=False)
    for_evaluation: bool = field(default=False, kw_only=True)

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text of the row that is placed between special tokens."""
        raise NotImplementedError

    @property
    def answer_row(self) -> Row:
        """The row of its answer; of the two answers of a pair, which are of one type, that of the chosen one."""
        return self


@dataclass(frozen=True)
class ChatRow(Row):
    """A conversation, which the model's chat template renders.

    Attributes:
        messages: the turns.
        tools: JSON schemas of the functions that the assistant may call; None if the row has none.
        prompt_messages: number of leading messages that are a prompt and never enter the loss; above 0 in
            prompt/completion and preference rows only.
        template_arguments: variables of the chat template by name; they replace those of the job.
    """

    kind_name: ClassVar[str] = "messages"
    main_field: ClassVar[str] = "messages"

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, object], ...] | None = field(default=None, repr=False)
    prompt_messages: int = 0
    template_arguments: Mapping[str, TemplateArgument] = field(default_factory=dict, repr=False)

    @property
    def texts(self) -> tuple[str, ...]:
        """Contents of the messages, then the reasoning of those that have any."""
        reasoning = tuple(message.reasoning_content or "" for message in self.messages)
        return (*(message.content for message in self.messages), *filter(None, reasoning))


@dataclass(frozen=True)
class CompletionRow(Row):
    """`{"prompt": …, "completion": …}`: plain text and its continuation."""

    kind_name: ClassVar[str] = "prompt/completion"
    main_field: ClassVar[str] = "completion"

    prompt: str = field(repr=False)
    completion: str = field(repr=False)

    @property
    def texts(self) -> tuple[str, ...]:
        """Prompt and completion."""
        return (self.prompt, self.completion)


@dataclass(frozen=True)
class TextRow(Row):
    """`{"text": …}`: plain text."""

    kind_name: ClassVar[str] = "text"
    main_field: ClassVar[str] = "text"

    text: str = field(repr=False)

    @property
    def texts(self) -> tuple[str, ...]:
        """The text."""
        return (self.text,)


@dataclass(frozen=True)
class PreferenceRow(Row):
    """Two answers to one prompt, both of one type; the first is the preferred one."""

    kind_name: ClassVar[str] = "preference"
    main_field: ClassVar[str] = "chosen"

    chosen: ChatRow | CompletionRow
    rejected: ChatRow | CompletionRow

    @property
    def answer_row(self) -> ChatRow | CompletionRow:
        """The row of the chosen answer."""
        return self.chosen

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the chosen side, then those of the rejected side."""
        return (*self.chosen.texts, *self.rejected.texts)


@dataclass(frozen=True)
class UnpairedPreferenceRow(Row):
    """One answer to a prompt, and whether it is desirable."""

    kind_name: ClassVar[str] = "unpaired preference"
    main_field: ClassVar[str] = "label"

    answer: ChatRow | CompletionRow
    label: bool = field(repr=False)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the answer's row."""
        return self.answer.texts

    @property
    def answer_row(self) -> ChatRow | CompletionRow:
        """The row of the answer."""
        return self.answer
