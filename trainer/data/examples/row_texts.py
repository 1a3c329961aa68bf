"""The texts and numbers of a conversation, one by one and in a fixed order, and their replacement by others.

The order is: tools, then each message with its reasoning, content, calls and name. White space around a text does
not belong to it, because templates strip it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from trainer.data.rows import ChatRow, Message, ToolCall
from trainer.spec import RowPart

Scalar = str | int | float | bool | None
"""A value without parts."""

ToolList = tuple[Mapping[str, object], ...] | None
"""The tools of a row."""

_THINK: Final = re.compile(r"(</?think>)")
"""The tags around reasoning inside a content, by which templates take it apart."""

_LINE_END: Final = re.compile(r"(\n)")

_PART_OF_ROLE: Final[Mapping[str, RowPart]] = {
    "system": RowPart.SYSTEM,
    "developer": RowPart.SYSTEM,
    "user": RowPart.CONTENT,
    "assistant": RowPart.CONTENT,
    "tool": RowPart.TOOL,
}
"""The part of a row that a message's content is."""


@dataclass(frozen=True, slots=True)
class RowText:
    """A text or number of a conversation.

    Attributes:
        part: what a job spec calls the part of the row that it is in.
        field: where it is, for errors: made of known names and indices only.
        message: index of its message; -1 for tools, which come before all of them.
        value: the text, without the white space around it, or the number.
    """

    part: RowPart
    field: str
    message: int
    value: Scalar = dataclasses.field(repr=False)

    @property
    def moves(self) -> bool:
        """Whether templates may print it at another place than that of its turn."""
        return self.part in (RowPart.SYSTEM, RowPart.TOOLS)


def collect_texts(row: ChatRow) -> list[RowText]:
    """Returns the texts of the tools and all messages of a row."""
    texts: list[RowText] = []

    def collect(text: RowText) -> Scalar:
        texts.append(text)
        return text.value

    _rewrite(row, len(row.messages), collect)
    return texts


def replace_texts(
    row: ChatRow, count: int, values: Iterable[Scalar]
) -> tuple[tuple[Message, ...], ToolList]:
    """Returns the first `count` messages and the tools with other values in place of their texts.

    Args:
        row: the row.
        count: number of messages.
        values: a value for each text, in the order of `collect_texts`.
    """
    remaining = iter(values)
    return _rewrite(row, count, lambda _text: next(remaining))


_Visit = Callable[[RowText], Scalar]
"""Receives a text and returns what replaces it."""


@dataclass(slots=True)
class _Field:
    """A field of a row, each text of which goes through `visit`."""

    part: RowPart
    name: str
    message: int
    visit: _Visit

    def text(self, text: str) -> str:
        value = text.strip()
        if not value:
            return text
        replaced = self._replace(value)
        if replaced == value:
            return text
        before, _, after = text.partition(value)
        return f"{before}{replaced}{after}"

    def lines(self, text: str) -> str:
        """Each line by itself, because templates indent lines or begin them with a comment sign."""
        return "".join(map(self.text, _LINE_END.split(text)))

    def json(self, value: object) -> object:
        """Every key and every value without parts inside a JSON value."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(key): self.json(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.json(item) for item in value]
        return self._replace(value if isinstance(value, int | float | None) else str(value))

    def schema(self, key: str, value: object) -> object:
        """Names, descriptions and choices of parameters in a JSON schema; the rest of it templates translate."""
        if key == "description" and isinstance(value, str):
            return self.lines(value)
        if key == "enum" and isinstance(value, list):
            return [self.text(item) if isinstance(item, str) else item for item in value]
        if key == "properties" and isinstance(value, Mapping):
            return {self.text(name): self.schema("", item) for name, item in value.items()}
        if isinstance(value, Mapping):
            return {name: self.schema(name, item) for name, item in value.items()}
        return [self.schema("", item) for item in value] if isinstance(value, list) else value

    def _replace(self, value: Scalar) -> Scalar:
        return self.visit(RowText(self.part, self.name, self.message, value))


def _rewrite(row: ChatRow, count: int, visit: _Visit) -> tuple[tuple[Message, ...], ToolList]:
    tools: list[Mapping[str, object]] = []
    for n, tool in enumerate(row.tools or ()):
        field_, inner = _Field(RowPart.TOOLS, f"tools[{n}]", -1, visit), tool.get("function")
        if isinstance(inner, Mapping):
            tools.append({**tool, "function": _rewrite_function(inner, field_)})
        else:
            tools.append(_rewrite_function(tool, field_))
    called = frozenset(call.name for message in row.messages for call in message.tool_calls)
    messages = (
        _rewrite_message(message, n, called, visit)
        for n, message in enumerate(row.messages[:count])
    )
    return tuple(messages), None if row.tools is None else tuple(tools)


def _rewrite_function(function: Mapping[str, object], field_: _Field) -> Mapping[str, object]:
    return {
        key: field_.text(value)
        if key == "name" and isinstance(value, str)
        else field_.schema(key, value)
        for key, value in function.items()
    }


def _rewrite_message(
    message: Message, number: int, called: frozenset[str], visit: _Visit
) -> Message:
    def in_field(part: RowPart, name: str) -> _Field:
        return _Field(part, f"messages[{number}].{name}", number, visit)

    reasoning, name = message.reasoning_content, message.name
    if (
        reasoning is None
        and name is None
        and not message.tool_calls
        and "</think>" not in message.content
    ):
        content = in_field(_PART_OF_ROLE[message.role], "content").text(message.content)
        return message if content == message.content else replace(message, content=content)
    if reasoning is not None:
        reasoning = in_field(RowPart.REASONING_CONTENT, "reasoning_content").text(reasoning)
    *thoughts, answer = (
        _THINK.split(message.content) if message.role == "assistant" else (message.content,)
    )
    if "</think>" not in thoughts:
        thoughts, answer = [], message.content
    inside = in_field(RowPart.REASONING_CONTENT, "content")
    before = (text if _THINK.fullmatch(text) else inside.text(text) for text in thoughts)
    content = f"{''.join(before)}{in_field(_PART_OF_ROLE[message.role], 'content').text(answer)}"
    calls = _rewrite_calls(message.tool_calls, in_field)
    # The name of a tool is in the call that it answers.
    if name is not None and not (message.role == "tool" and name in called):
        name = in_field(RowPart.NAME, "name").text(name)
    return replace(
        message, reasoning_content=reasoning, content=content, tool_calls=calls, name=name
    )


def _rewrite_calls(
    calls: Sequence[ToolCall], in_field: Callable[[RowPart, str], _Field]
) -> tuple[ToolCall, ...]:
    rewritten: list[ToolCall] = []
    for number, call in enumerate(calls):
        name = in_field(RowPart.TOOL_CALLS, f"tool_calls[{number}].name").text(call.name)
        field_ = in_field(RowPart.TOOL_CALLS, f"tool_calls[{number}].arguments")
        arguments = {field_.text(key): field_.json(value) for key, value in call.arguments.items()}
        rewritten.append(replace(call, name=name, arguments=arguments))
    return tuple(rewritten)
