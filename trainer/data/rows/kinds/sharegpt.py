"""ShareGPT: `{"conversations": [{"from": …, "value": …}, …], "system": …?, "tools": …?}`.

The value of a `function_call` turn is the JSON text of one call or of a list of calls (`name`, `arguments`) and
becomes a turn of the assistant. `observation` becomes a turn of the tool.

Source: the format of the ShareGPT exports; `function_call` and `observation` are LLaMA-Factory's additions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from trainer.data.rows.kinds.messages import (
    add_system_message,
    parse_message,
    parse_tool_calls,
    parse_tools,
    parse_train_flag,
)
from trainer.data.rows.row import ROLES, ChatRow, Message, RowLocation
from trainer.data.rows.row_kind import Document, RowKind
from trainer.data.rows.values import check_objects, check_text, describe, parse_json_text, refuse_value, row_error

_ROLE_OF_SPEAKER: Final[Mapping[str, str]] = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    **{role: role for role in ROLES},
}


def _parse(location: RowLocation, document: Document) -> ChatRow:
    items = check_objects(location, "conversations", document["conversations"])
    turns = tuple(_parse_turn(location, f"conversations[{number}]", item) for number, item in enumerate(items))
    messages = add_system_message(location, document, turns)
    return ChatRow(location.file, location.index, messages, parse_tools(location, document.get("tools")))


def _parse_turn(location: RowLocation, field: str, item: Document) -> Message:
    if "role" in item:  # many files keep the name of the column but use the keys of `messages`
        return parse_message(location, field, item)
    if not {"from", "value"} <= item.keys() <= {"from", "value", "weight", "train"}:
        raise row_error(location, "wrong keys", field=field, expected="from and value", found=describe(item))
    speaker = item["from"]
    role = _ROLE_OF_SPEAKER.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        refuse_value(location, f"{field}.from", f"one of {', '.join(_ROLE_OF_SPEAKER)}", speaker)
    value = check_text(location, f"{field}.value", item["value"])
    if speaker == "function_call":
        document = parse_json_text(location, f"{field}.value", value)
        calls = parse_tool_calls(
            location, f"{field}.value", document if isinstance(document, list) else [document]
        )
        if not calls:
            refuse_value(location, f"{field}.value", "the JSON text of one call or more", document)
        message = Message(role, "", tool_calls=calls)
    else:
        message = Message(role, value)
    return replace(message, train=parse_train_flag(location, field, role, item))


SHAREGPT: Final = RowKind(
    "sharegpt",
    ("conversations",),
    _parse,
    optional=("system", "tools"),
    json_columns=("conversations", "tools"),
)
