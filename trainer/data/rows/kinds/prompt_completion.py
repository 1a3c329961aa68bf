"""Prompt and completion: `{"prompt": …, "completion": …}`, both text or both lists of messages.

Beside a column `system`, text is a conversation: the system text, the prompt as the user's turn, and the
completion as the assistant's.
"""

from __future__ import annotations

from typing import Final

from trainer.data.rows.kinds.messages import (
    CHAT_COLUMNS,
    add_system_message,
    make_chat,
    parse_messages,
)
from trainer.data.rows.row import ChatRow, CompletionRow, Message, RowLocation
from trainer.data.rows.row_kind import Document, RowKind
from trainer.data.rows.values import check_text, describe, refuse_value, row_error

PromptPart = str | tuple[Message, ...]
"""A prompt, or what follows one: text, or the turns of a conversation."""


def _parse(location: RowLocation, document: Document) -> ChatRow | CompletionRow:
    prompt = parse_part(location, "prompt", document["prompt"], empty=True)
    completion = parse_part(location, "completion", document["completion"])
    return join_parts(location, document, prompt, "completion", completion)


def parse_part(
    location: RowLocation, field: str, value: object, *, empty: bool = False
) -> PromptPart:
    """Parses text or a list of messages; `empty` admits the empty text.

    Raises:
        DataError: the value is neither.
    """
    if isinstance(value, list):
        return parse_messages(location, field, value)
    return check_text(location, field, value, empty=empty)


def join_parts(
    location: RowLocation,
    document: Document,
    prompt: PromptPart,
    field: str,
    continuation: PromptPart,
) -> ChatRow | CompletionRow:
    """Returns the row of a prompt and what follows it.

    Args:
        location: file and index of the row.
        document: the row, for the columns beside them.
        prompt: the prompt.
        field: name of the field that holds the continuation.
        continuation: what follows the prompt.

    Raises:
        DataError: the two are of different types, or there is no turn of the assistant to learn.
    """
    if isinstance(prompt, str) and isinstance(continuation, str):
        if "system" not in document:
            _refuse_chat_columns(location, document)
            return CompletionRow(location.file, location.index, prompt, continuation)
        prompt, continuation = (Message("user", prompt),), (Message("assistant", continuation),)
    if isinstance(prompt, str):
        refuse_value(location, field, "text that is not empty", list(continuation))
    if isinstance(continuation, str):
        refuse_value(location, "prompt", f"text or a list of messages, as {field} is", list(prompt))
    if not any(message.role == "assistant" for message in continuation):
        expected = "at least one message of the assistant"
        raise row_error(location, "nothing to learn", field=field, expected=expected, found="none")
    before = add_system_message(location, document, prompt)
    return make_chat(location, document, before + continuation, prompt_messages=len(before))


def _refuse_chat_columns(location: RowLocation, document: Document) -> None:
    for column in CHAT_COLUMNS:
        if document.get(column):
            found = describe(document[column])
            raise row_error(
                location, "wrong keys", field=column, expected="none beside plain text", found=found
            )


PROMPT_COMPLETION: Final = RowKind(
    "prompt_completion",
    ("prompt", "completion"),
    _parse,
    optional=("system", *CHAT_COLUMNS),
    json_columns=CHAT_COLUMNS,
)
