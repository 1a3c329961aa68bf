"""Alpaca instructions: `{"instruction": …, "input": …?, "output": …, "system": …?, "history": [[…, …], …]?}`.

The user's turn is `instruction`, followed by a line end and `input` if there is one; the assistant's turn is
`output`. `history` holds earlier pairs of user and assistant turns, which are not trained on.

Source: the data format of Stanford Alpaca; `system` and `history` are LLaMA-Factory's additions.
"""

from __future__ import annotations

from typing import Final

from trainer.data.rows.kinds.messages import CHAT_COLUMNS, add_system_message, make_chat
from trainer.data.rows.row import ChatRow, Message, RowLocation
from trainer.data.rows.row_kind import Document, RowKind
from trainer.data.rows.values import check_optional_text, check_text, refuse_value

INSTRUCTION_COLUMNS: Final = ("instruction", "input", "history")
"""Columns of the turns before the answer."""


def _parse(location: RowLocation, document: Document) -> ChatRow:
    prompt = parse_instruction(location, document)
    answer = Message("assistant", check_text(location, "output", document["output"], empty=False))
    return make_chat(location, document, add_system_message(location, document, (*prompt, answer)))


def parse_instruction(location: RowLocation, document: Document) -> tuple[Message, ...]:
    """Returns the turns that `INSTRUCTION_COLUMNS` hold: earlier ones, then that of the user.

    Raises:
        DataError: one of the columns has another form.
    """
    instruction = check_text(location, "instruction", document["instruction"])
    context = check_optional_text(location, "input", document.get("input"))
    earlier = _parse_history(location, document.get("history"))
    return (*earlier, Message("user", f"{instruction}\n{context}" if context else instruction))


def _parse_history(location: RowLocation, value: object) -> list[Message]:
    if value is None:
        return []
    if not isinstance(value, list):
        refuse_value(location, "history", "a list of pairs of texts", value)
    turns: list[Message] = []
    for number, pair in enumerate(value):
        field = f"history[{number}]"
        if not isinstance(pair, list) or len(pair) != 2:
            refuse_value(location, field, "a pair of texts", pair)
        turns.append(Message("user", check_text(location, f"{field}[0]", pair[0])))
        turns.append(
            Message("assistant", check_text(location, f"{field}[1]", pair[1]), train=False)
        )
    return turns


ALPACA: Final = RowKind(
    "alpaca",
    ("instruction", "output"),
    _parse,
    optional=("input", "system", "history", *CHAT_COLUMNS),
    json_columns=("history", *CHAT_COLUMNS),
)
