"""Messages in the form in which a chat template expects them, and how that form is found out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from trainer.data.rows import Message, ToolCall

if TYPE_CHECKING:
    from jinja2 import nodes

PROBE_CALL: Final = (
    Message("user", "probe question"),
    Message(
        "assistant",
        "",
        tool_calls=(ToolCall("probe_function", {"probe_key": "probe value"}, "probe1234"),),
    ),
)
"""A call, from whose rendering follows how a template writes calls; some demand an id of nine characters."""

PROBE_TOOLS: Final = (
    {
        "type": "function",
        "function": {
            "name": "probe_function",
            "description": "a probe",
            "parameters": {"type": "object", "properties": {}},
        },
    },
)


def prints_probe_call(text: str) -> bool:
    """Returns whether the arguments of `PROBE_CALL` are in a rendering, neither as Python nor serialised twice."""
    # Python's notation has single quotes, and text that is serialised once more has quotes behind a backslash.
    return (
        "probe_key" in text
        and "probe value" in text
        and not re.search(r"""'probe_key|\\"probe_key""", text)
    )


def as_turns(
    messages: Sequence[Message], *, reasoning_key: str, calls_as_text: bool
) -> list[dict[str, Any]]:
    """Returns messages as templates expect them, without the keys that have no value.

    Args:
        messages: the messages.
        reasoning_key: key of the assistant's reasoning.
        calls_as_text: whether the arguments of calls are JSON text instead of an object.
    """
    return [_as_turn(message, reasoning_key, calls_as_text=calls_as_text) for message in messages]


def _as_turn(message: Message, reasoning_key: str, *, calls_as_text: bool) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning_content is not None:
        turn[reasoning_key] = message.reasoning_content
    if message.tool_calls:
        turn["tool_calls"] = [_as_call(call, as_text=calls_as_text) for call in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        turn["name"] = message.name
    return turn


def _as_call(call: ToolCall, *, as_text: bool) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False) if as_text else call.arguments
    function = {"name": call.name, "arguments": arguments}
    return {
        "type": "function",
        "function": function,
        **({} if call.id is None else {"id": call.id}),
    }


def read_keys(tree: nodes.Template) -> frozenset[str]:
    """Returns the attributes that a template reads, and its text constants, among which are keys."""
    from jinja2 import nodes as kinds  # noqa: PLC0415 -- part of an extra

    attributes = {node.attr for node in tree.find_all(kinds.Getattr)}
    return frozenset(
        attributes
        | {node.value for node in tree.find_all(kinds.Const) if isinstance(node.value, str)}
    )


def read_variables(tree: nodes.Template) -> frozenset[str]:
    """Returns the variables that a template reads from outside.

    Jinja also counts names that the template sets on some of its paths. Such a name is left out, unless the
    template asks whether it is defined, or sets it from itself: then a variable from outside gets a default.
    """
    from jinja2 import nodes as kinds  # noqa: PLC0415 -- part of an extra
    from jinja2.meta import find_undeclared_variables  # noqa: PLC0415

    own = {node.name for node in tree.find_all(kinds.Name) if node.ctx == "store"}
    for question in tree.find_all((kinds.Test, kinds.Filter)):
        if question.name in ("defined", "undefined", "default", "d") and isinstance(
            question.node, kinds.Name
        ):
            own.discard(question.node.name)
    for statement in tree.body:
        if isinstance(statement, kinds.Assign) and isinstance(statement.target, kinds.Name):
            own -= {name.name for name in statement.node.find_all(kinds.Name)} & {
                statement.target.name
            }
    return frozenset(find_undeclared_variables(tree) - own)
