"""Conversations: OpenAI's `messages`, ShareGPT's `conversations` and Alpaca's instructions become one shape.

- `messages`: the format of OpenAI and of Hugging Face's chat templates.
- ShareGPT: `from` and `value` in place of role and content. `function_call` holds the JSON of one call or several
  (`name`, `arguments`) and becomes a turn of the assistant; `observation` becomes a turn of the tool.
- Alpaca: the user's turn is `instruction`, and, where there is one, a line end and `input`; the assistant's is
  `output`. `history` holds earlier pairs, which are not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from trainer.data.rows.row import ROLES, ChatRow, Message, Row, ToolCall
from trainer.data.rows.values import (
    check_encodable,
    describe,
    json_text,
    objects,
    optional_text,
    refused,
    text,
    wrong,
)

Document = Mapping[str, object]
Tools = tuple[Mapping[str, object], ...] | None

_MESSAGE_KEYS: Final = frozenset(
    {"role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name", "weight", "train"}
)
_SHAREGPT_ROLES: Final[Mapping[str, str]] = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    **{role: role for role in ROLES},
}


def chat(row: Row, document: Document) -> ChatRow:
    """`{"messages": […], "tools": […]?}`.

    Raises:
        DataError: a message or a tool is not of the agreed form.
    """
    turns = messages(row, "messages", document["messages"])
    return ChatRow(row.file, row.index, turns, tools(row, document.get("tools")))


def sharegpt(row: Row, document: Document) -> ChatRow:
    """`{"conversations": [{"from": …, "value": …}, …], "system": …?, "tools": …?}`.

    Raises:
        DataError: a turn is not of the agreed form.
    """
    where = "conversations"
    items = objects(row, where, document[where])
    turns = tuple(_sharegpt_turn(row, f"{where}[{number}]", item) for number, item in enumerate(items))
    return ChatRow(row.file, row.index, _behind_system(row, document, turns), tools(row, document.get("tools")))


def alpaca(row: Row, document: Document) -> ChatRow:
    """`{"instruction": …, "input": …?, "output": …, "system": …?, "history": [[…, …], …]?}`.

    Raises:
        DataError: a field is not of the agreed form.
    """
    instruction = text(row, "instruction", document["instruction"])
    context = optional_text(row, "input", document.get("input"))
    answer = text(row, "output", document["output"], empty=False)
    turns = (
        *_history(row, document.get("history")),
        Message("user", f"{instruction}\n{context}" if context else instruction),
        Message("assistant", answer),
    )
    return ChatRow(row.file, row.index, _behind_system(row, document, turns))


def _behind_system(row: Row, document: Document, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    system = optional_text(row, "system", document.get("system"))
    return (Message("system", system), *turns) if system else turns


def _history(row: Row, value: object) -> list[Message]:
    if value is None:
        return []
    if not isinstance(value, list):
        wrong(row, "history", "a list of pairs of texts", value)
    turns: list[Message] = []
    for number, pair in enumerate(value):
        where = f"history[{number}]"
        if not isinstance(pair, list) or len(pair) != 2:
            wrong(row, where, "a pair of texts", pair)
        turns.append(Message("user", text(row, f"{where}[0]", pair[0])))
        turns.append(Message("assistant", text(row, f"{where}[1]", pair[1]), train=False))
    return turns


def messages(row: Row, where: str, value: object) -> tuple[Message, ...]:
    """A list of messages; `where` names the field that holds it.

    Raises:
        DataError: it is no such list.
    """
    if not isinstance(value, list) or not value:
        wrong(row, where, "a list of at least one message", value)
    return tuple(_message(row, f"{where}[{number}]", item) for number, item in enumerate(value))


def _message(row: Row, where: str, item: object) -> Message:
    if not isinstance(item, dict):
        wrong(row, where, "an object with role and content", item)
    if "role" not in item or not item.keys() <= _MESSAGE_KEYS or not ("content" in item or "tool_calls" in item):
        raise _wrong_keys(row, where, item)
    role = item["role"]
    if role not in ROLES:
        wrong(row, f"{where}.role", f"one of {', '.join(ROLES)}", role)
    if len(item) == 2 and "content" in item:
        return Message(role, _content(row, f"{where}.content", item["content"]))
    return _rich_message(row, where, role, item)


def _wrong_keys(row: Row, where: str, item: Document) -> Exception:
    missing = [key for key in ("role", "content") if key not in item]
    found = f"an object of {len(item)} keys{f' without {missing[0]}' if missing else ''}"
    expected = "role and content; beside them tool_calls, tool_call_id, name, reasoning_content, weight or train"
    return refused(row, "wrong keys", field=where, expected=expected, found=found)


def _rich_message(row: Row, where: str, role: str, item: Document) -> Message:
    calls = _tool_calls(row, f"{where}.tool_calls", item.get("tool_calls"))
    if role != "assistant":
        for key in ("tool_calls", "reasoning_content"):
            if item.get(key):
                wrong(row, f"{where}.{key}", "nothing, except in a turn of the assistant", item[key])
    content = item.get("content")
    return Message(
        role,
        "" if content is None and calls else _content(row, f"{where}.content", content),
        reasoning_content=optional_text(row, f"{where}.reasoning_content", item.get("reasoning_content")),
        tool_calls=calls,
        tool_call_id=optional_text(row, f"{where}.tool_call_id", item.get("tool_call_id")),
        name=optional_text(row, f"{where}.name", item.get("name")),
        train=_train(row, where, role, item),
    )


def _content(row: Row, where: str, value: object) -> str:
    """Text, or a list of text parts, which are joined as they stand."""
    if not isinstance(value, list):
        return text(row, where, value)
    parts = objects(row, where, value)
    for number, part in enumerate(parts):
        if part.get("type") != "text" or part.keys() != {"type", "text"}:
            wrong(row, f"{where}[{number}]", "a part of type text", part)
    return "".join(text(row, f"{where}[{number}].text", part["text"]) for number, part in enumerate(parts))


def _train(row: Row, where: str, role: str, item: Document) -> bool:
    """Whether the turn is trained on: `train` (true or false) or `weight` (1 or 0), one of them."""
    given = [key for key in ("train", "weight") if item.get(key) is not None]
    if not given:
        return True
    if len(given) == 2:
        wrong(row, f"{where}.weight", "train or weight, not both", item["weight"])
    key, value = given[0], item[given[0]]
    if not (isinstance(value, bool) if key == "train" else value in (0, 1)):
        wrong(row, f"{where}.{key}", "true or false" if key == "train" else "0 or 1", value)
    if value and role != "assistant":
        wrong(row, f"{where}.{key}", "nothing or 0: only the assistant's turns are trained on", value)
    return bool(value)


def _tool_calls(row: Row, where: str, value: object) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    items = objects(row, where, value, empty=True)
    return tuple(_tool_call(row, f"{where}[{number}]", item) for number, item in enumerate(items))


def _tool_call(row: Row, where: str, item: Document) -> ToolCall:
    """`{"type": "function", "id": …?, "function": {"name": …, "arguments": …}}`, or name and arguments alone."""
    function = item.get("function", item)
    if item.get("type", "function") != "function" or not isinstance(function, dict):
        wrong(row, where, "a call of a function", function)
    if not {"name"} <= function.keys() <= {"name", "arguments", "id", "type"}:
        raise refused(row, "wrong keys", field=where, expected="name and arguments", found=describe(function))
    return ToolCall(
        text(row, f"{where}.name", function["name"], empty=False),
        _arguments(row, f"{where}.arguments", function.get("arguments")),
        optional_text(row, f"{where}.id", item.get("id")),
    )


def _arguments(row: Row, where: str, value: object) -> Mapping[str, object]:
    """The arguments as an object; OpenAI writes them as the JSON text of one."""
    if value is None:
        return {}
    if isinstance(value, str):
        value = json_text(row, where, value)
    if not isinstance(value, dict):
        wrong(row, where, "an object, or its JSON text", value)
    check_encodable(row, where, value)
    return value


def tools(row: Row, value: object) -> Tools:
    """JSON schemas of functions: a list of objects, or its JSON text; None and an empty text mean none.

    Raises:
        DataError: it is something else.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        value = json_text(row, "tools", value)
    found = objects(row, "tools", value, empty=True)
    check_encodable(row, "tools", found)
    return tuple(found) or None


def _sharegpt_turn(row: Row, where: str, item: Document) -> Message:
    if "role" in item:  # many files keep the column's name and take over the keys of `messages`
        return _message(row, where, item)
    if not {"from", "value"} <= item.keys() <= {"from", "value", "weight", "train"}:
        raise refused(row, "wrong keys", field=where, expected="from and value", found=describe(item))
    speaker = item["from"]
    role = _SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        wrong(row, f"{where}.from", f"one of {', '.join(_SHAREGPT_ROLES)}", speaker)
    said = text(row, f"{where}.value", item["value"])
    if speaker == "function_call":
        turn = Message(role, "", tool_calls=_sharegpt_calls(row, f"{where}.value", said))
    else:
        turn = Message(role, said)
    return replace(turn, train=_train(row, where, role, item))


def _sharegpt_calls(row: Row, where: str, said: str) -> tuple[ToolCall, ...]:
    value = json_text(row, where, said)
    calls = _tool_calls(row, where, value if isinstance(value, list) else [value])
    if not calls:
        wrong(row, where, "the JSON text of one call or more", value)
    return calls
