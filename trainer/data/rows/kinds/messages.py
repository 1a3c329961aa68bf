"""Conversations in OpenAI's form: `{"messages": [{"role": …, "content": …}, …], "tools": [...]?}`.

The other kinds of rows that hold conversations use the parsers of this module.

Source: OpenAI's chat format as the chat templates of Hugging Face transformers read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trainer.data.rows.row import ROLES, ChatRow, Message, RowLocation, ToolCall
from trainer.data.rows.row_kind import Document, RowKind
from trainer.data.rows.values import (
    check_encodable,
    check_keys,
    check_objects,
    check_optional_text,
    check_text,
    describe,
    parse_json_text,
    refuse_value,
    row_error,
)
from trainer.spec.template_arguments import TemplateArgument, is_set_by_renderer

ToolSchemas = tuple[Mapping[str, object], ...] | None

CHAT_COLUMNS: Final = ("tools", "chat_template_kwargs")
"""Columns that may stand beside every conversation."""

MESSAGE_KEYS: Final = (
    "role", "content", "reasoning_content", "thinking", "tool_calls", "tool_call_id", "name", "weight", "train",
)  # fmt: skip


def _parse(location: RowLocation, document: Document) -> ChatRow:
    return make_chat(location, document, parse_messages(location, "messages", document["messages"]))


MESSAGES: Final = RowKind(
    "messages",
    ("messages",),
    _parse,
    optional=CHAT_COLUMNS,
    json_columns=("messages", *CHAT_COLUMNS),
)


def make_chat(
    location: RowLocation,
    document: Document,
    messages: tuple[Message, ...],
    *,
    prompt_messages: int = 0,
) -> ChatRow:
    """Returns a conversation with the `CHAT_COLUMNS` of its row.

    Args:
        location: file and index of the row.
        document: the row.
        messages: the turns.
        prompt_messages: as in `ChatRow`.

    Raises:
        DataError: one of these columns has another form.
    """
    tools = parse_tools(location, document.get("tools"))
    arguments = parse_template_arguments(location, document.get("chat_template_kwargs"))
    return ChatRow(location.file, location.index, messages, tools, prompt_messages, arguments)


def parse_messages(location: RowLocation, field: str, value: object) -> tuple[Message, ...]:
    """Parses the list of messages in `field`.

    Raises:
        DataError: the value is not such a list.
    """
    if not isinstance(value, list) or not value:
        refuse_value(location, field, "a list of at least one message", value)
    return tuple(
        parse_message(location, f"{field}[{number}]", item) for number, item in enumerate(value)
    )


def parse_message(location: RowLocation, field: str, item: object) -> Message:
    """Parses one message.

    Raises:
        DataError: the value is not an object with the keys and types of a message.
    """
    if not isinstance(item, dict):
        refuse_value(location, field, "an object with role and content", item)
    is_plain = item.keys() == {"role", "content"}  # nearly every message of most datasets
    if not is_plain:
        missing = [key for key in ("role", "content") if key not in item]
        if "role" in missing or (missing and "tool_calls" not in item):
            found = f"an object of {len(item)} keys without {missing[0]}"
            expected = "role and content"
            raise row_error(location, "wrong keys", field=field, expected=expected, found=found)
        check_keys(location, field, item, MESSAGE_KEYS)
    role = item["role"]
    if role not in ROLES:
        refuse_value(location, f"{field}.role", f"one of {', '.join(ROLES)}", role)
    if is_plain:
        return Message(role, _parse_content(location, f"{field}.content", item["content"]))
    return _parse_optional_keys(location, field, role, item)


def _parse_optional_keys(location: RowLocation, field: str, role: str, item: Document) -> Message:
    calls = parse_tool_calls(location, f"{field}.tool_calls", item.get("tool_calls"))
    # Most templates ignore such a key, so that the row would be trained on without it.
    if role != "assistant":
        for key in ("tool_calls", "reasoning_content", "thinking"):
            if item.get(key):
                refuse_value(
                    location,
                    f"{field}.{key}",
                    "nothing, except in a turn of the assistant",
                    item[key],
                )

    def optional_text(key: str) -> str | None:
        return check_optional_text(location, f"{field}.{key}", item.get(key))

    reasoning, thinking = optional_text("reasoning_content"), optional_text("thinking")
    if reasoning and thinking and reasoning != thinking:
        refuse_value(
            location, f"{field}.thinking", "the text of reasoning_content, or none", thinking
        )
    content = item.get("content")
    return Message(
        role,
        "" if content is None and calls else _parse_content(location, f"{field}.content", content),
        reasoning_content=reasoning or thinking or reasoning,
        tool_calls=calls,
        tool_call_id=optional_text("tool_call_id"),
        name=optional_text("name"),
        train=parse_train_flag(location, field, role, item),
    )


def _parse_content(location: RowLocation, field: str, value: object) -> str:
    """Parses a text, or a list of text parts, which are concatenated without a separator."""
    if not isinstance(value, list):
        return check_text(location, field, value)
    parts = check_objects(location, field, value)
    for number, part in enumerate(parts):
        if part.get("type") != "text" or part.keys() != {"type", "text"}:
            refuse_value(location, f"{field}[{number}]", "a part of type text", part)
    return "".join(
        check_text(location, f"{field}[{number}].text", part["text"])
        for number, part in enumerate(parts)
    )


def parse_train_flag(location: RowLocation, field: str, role: str, item: Document) -> bool:
    """Returns whether the turn enters the loss: `train` (true or false) or `weight` (1 or 0), not both.

    Raises:
        DataError: the value is another one, or turns a turn on that is not the assistant's.
    """
    present = [key for key in ("train", "weight") if item.get(key) is not None]
    if not present:
        return True
    if len(present) == 2:
        refuse_value(location, f"{field}.weight", "train or weight, not both", item["weight"])
    key, value = present[0], item[present[0]]
    if not (isinstance(value, bool) if key == "train" else value in (0, 1)):
        refuse_value(
            location, f"{field}.{key}", "true or false" if key == "train" else "0 or 1", value
        )
    if value and role != "assistant":
        expected = "nothing or 0: only the assistant's turns are trained on"
        refuse_value(location, f"{field}.{key}", expected, value)
    return bool(value)


def parse_tool_calls(location: RowLocation, field: str, value: object) -> tuple[ToolCall, ...]:
    """Parses a list of function calls; null means none.

    Raises:
        DataError: the value is not such a list.
    """
    if value is None:
        return ()
    items = check_objects(location, field, value, empty=True)
    return tuple(
        _parse_tool_call(location, f"{field}[{number}]", item) for number, item in enumerate(items)
    )


def _parse_tool_call(location: RowLocation, field: str, item: Document) -> ToolCall:
    """Parses `{"type": "function", "id": …?, "function": {"name": …, "arguments": …}}`, or its inner object."""
    function = item.get("function", item)
    if item.get("type", "function") != "function" or not isinstance(function, dict):
        refuse_value(location, field, "a call of a function", function)
    if "function" in item:
        check_keys(location, field, item, ("id", "type", "function", "index"))
    if not {"name"} <= function.keys() <= {"name", "arguments", "id", "type"}:
        expected, found = "name and arguments", describe(function)
        raise row_error(location, "wrong keys", field=field, expected=expected, found=found)
    return ToolCall(
        check_text(location, f"{field}.name", function["name"], empty=False),
        _parse_arguments(location, f"{field}.arguments", function.get("arguments")),
        check_optional_text(location, f"{field}.id", item.get("id")),
    )


def _parse_arguments(location: RowLocation, field: str, value: object) -> Mapping[str, object]:
    """Parses an object, or the JSON text of one, which is how OpenAI writes arguments."""
    if value is None:
        return {}
    if isinstance(value, str):
        value = parse_json_text(location, field, value)
    if not isinstance(value, dict):
        refuse_value(location, field, "an object, or its JSON text", value)
    check_encodable(location, field, value)
    return value


def parse_tools(location: RowLocation, value: object) -> ToolSchemas:
    """Parses JSON schemas of functions. Null and the empty list mean none.

    Raises:
        DataError: the value is not a list of objects.
    """
    if value is None:
        return None
    schemas = check_objects(location, "tools", value, empty=True)
    check_encodable(location, "tools", schemas)
    return tuple(schemas) or None


def parse_template_arguments(
    location: RowLocation, value: object
) -> Mapping[str, TemplateArgument]:
    """Parses variables of the chat template by name; null means none, also as the value of a name.

    Raises:
        DataError: the value is no object, sets a variable of the renderer, or holds another type.
    """
    column = "chat_template_kwargs"
    if value is None:
        return {}
    if not isinstance(value, dict):
        refuse_value(location, column, "an object", value)
    check_encodable(location, column, value)
    arguments: dict[str, TemplateArgument] = {}
    for name, argument in value.items():
        if is_set_by_renderer(name):
            expected, found = (
                "variables of templates",
                "one that is set by what renders the template",
            )
            raise row_error(location, "wrong keys", field=column, expected=expected, found=found)
        if isinstance(argument, str | bool | int):
            arguments[name] = argument
        elif isinstance(argument, list) and all(isinstance(item, str) for item in argument):
            arguments[name] = tuple(argument)
        elif argument is not None:
            refuse_value(
                location, column, "text, true, false, whole numbers, or lists of texts", argument
            )
    return arguments


def add_system_message(
    location: RowLocation, document: Document, turns: tuple[Message, ...]
) -> tuple[Message, ...]:
    """Returns the turns, after the text of the column `system` as a system message if there is any.

    Raises:
        DataError: the column holds something else than text, or the turns begin with a system message too.
    """
    system = check_optional_text(location, "system", document.get("system"))
    if system and turns[0].role in ("system", "developer"):
        expected, found = "the column, or a first turn of the system", "both"
        raise row_error(
            location, "two system messages", field="system", expected=expected, found=found
        )
    return (Message("system", system), *turns) if system else turns
