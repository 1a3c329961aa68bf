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
    CHAT_COLUMNS,
    add_system_message,
    make_chat,
    parse_message,
    parse_tool_calls,
    parse_train_flag,
)
from trainer.data.rows.row import ROLES, ChatRow, Message, RowLocation
from trainer.data.rows.row_kind import Document, RowKind
from trainer.data.rows.values import (
    check_keys,
    check_objects,
    check_text,
    describe,
    parse_json_text,
    refuse_value,
    row_error,
)

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
    turns = parse_turns(location, "conversations", document["conversations"])
    return make_chat(location, document, add_system_message(location, document, turns))


def parse_turns(location: RowLocation, field: str, value: object) -> tuple[Message, ...]:
    """Parses the list of turns in `field`.

    Raises:
        DataError: the value is not such a list.
    """
    items = check_objects(location, field, value)
    return tuple(
        parse_turn(location, f"{field}[{number}]", item) for number, item in enumerate(items)
    )


def parse_turn(location: RowLocation, field: str, item: object) -> Message:
    """Parses one turn, with the keys of ShareGPT or of `messages`.

    Raises:
        DataError: the value is not an object with the keys and types of a turn.
    """
    # Many files keep the column's name but use the other keys.
    if isinstance(item, dict) and "role" in item:
        return parse_message(location, field, item)
    if not isinstance(item, dict) or not {"from", "value"} <= item.keys():
        raise row_error(
            location, "wrong keys", field=field, expected="from and value", found=describe(item)
        )
    check_keys(location, field, item, ("from", "value", "weight", "train"))
    speaker = item["from"]
    role = _ROLE_OF_SPEAKER.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        refuse_value(location, f"{field}.from", f"one of {', '.join(_ROLE_OF_SPEAKER)}", speaker)
    value = check_text(location, f"{field}.value", item["value"])
    message = (
        _parse_calls(location, field, value) if speaker == "function_call" else Message(role, value)
    )
    return replace(message, train=parse_train_flag(location, field, role, item))


def _parse_calls(location: RowLocation, field: str, value: str) -> Message:
    document = parse_json_text(location, f"{field}.value", value)
    items = document if isinstance(document, list) else [document]
    calls = parse_tool_calls(location, f"{field}.value", items)
    if not calls:
        refuse_value(location, f"{field}.value", "the JSON text of one call or more", document)
    return Message("assistant", "", tool_calls=calls)


SHAREGPT: Final = RowKind(
    "sharegpt",
    ("conversations",),
    _parse,
    optional=("system", *CHAT_COLUMNS),
    json_columns=("conversations", *CHAT_COLUMNS),
)
