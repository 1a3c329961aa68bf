"""Prompt and completion: `{"prompt": …, "completion": …}`, both text or both lists of messages."""

from __future__ import annotations

from typing import Final

from trainer.data.rows.kinds.messages import ToolSchemas, parse_messages, parse_tools
from trainer.data.rows.row import ChatRow, CompletionRow, RowLocation
from trainer.data.rows.row_kind import Document, RowKind
from trainer.data.rows.values import check_text, refuse_value, row_error


def _parse(location: RowLocation, document: Document) -> ChatRow | CompletionRow:
    tools = parse_tools(location, document.get("tools"))
    return parse_continuation(location, "completion", document["prompt"], document["completion"], tools)


def parse_continuation(
    location: RowLocation, field: str, prompt: object, continuation: object, tools: ToolSchemas
) -> ChatRow | CompletionRow:
    """Parses a prompt and what follows it.

    Args:
        location: file and index of the row.
        field: name of the field that holds the continuation.
        prompt: value of the field `prompt`.
        continuation: value of `field`.
        tools: schemas of functions; allowed with messages only.

    Raises:
        DataError: the two are of different types, or one of them is invalid.
    """
    if isinstance(prompt, list) and isinstance(continuation, list):
        before = parse_messages(location, "prompt", prompt)
        after = parse_messages(location, field, continuation)
        if not any(message.role == "assistant" for message in after):
            expected = "at least one message of the assistant"
            raise row_error(location, "nothing to learn", field=field, expected=expected, found="none")
        return ChatRow(location.file, location.index, before + after, tools, prompt_messages=len(before))
    if isinstance(prompt, list):
        refuse_value(location, "prompt", f"text or a list of messages, as {field} is", prompt)
    if tools is not None:
        raise row_error(location, "wrong keys", field="tools", expected="none beside plain text", found="a list")
    prompt_text = check_text(location, "prompt", prompt)
    return CompletionRow(
        location.file, location.index, prompt_text, check_text(location, field, continuation, empty=False)
    )


PROMPT_COMPLETION: Final = RowKind(
    "prompt_completion", ("prompt", "completion"), _parse, optional=("tools",), json_columns=("tools",)
)
