"""Preferences: `{"prompt": …?, "chosen": …, "rejected": …}`, all text or all lists of messages.

Without a prompt, the common beginning of both answers is the prompt: complete messages, or text up to its last
white space.
"""

from __future__ import annotations

from typing import Final

from trainer.data.rows.kinds.messages import parse_tools
from trainer.data.rows.kinds.prompt_completion import parse_continuation
from trainer.data.rows.row import PreferenceRow, RowLocation
from trainer.data.rows.row_kind import Document, RowKind
from trainer.data.rows.values import check_text, row_error


def _parse(location: RowLocation, document: Document) -> PreferenceRow:
    chosen, rejected = document["chosen"], document["rejected"]
    if chosen == rejected:
        raise row_error(
            location, "both sides are the same", field="rejected", expected="another answer", found="the same"
        )
    prompt = document.get("prompt")
    if prompt is None:
        prompt, chosen, rejected = _split_common_prompt(location, chosen, rejected)
    tools = parse_tools(location, document.get("tools"))
    return PreferenceRow(
        location.file,
        location.index,
        parse_continuation(location, "chosen", prompt, chosen, tools),
        parse_continuation(location, "rejected", prompt, rejected, tools),
    )


def _split_common_prompt(location: RowLocation, chosen: object, rejected: object) -> tuple[object, object, object]:
    """Returns prompt, chosen and rejected of two answers that each repeat the prompt."""
    first: str | list[object]
    second: str | list[object]
    if isinstance(chosen, list) and isinstance(rejected, list):
        first, second = chosen, rejected
    else:
        first, second = check_text(location, "chosen", chosen), check_text(location, "rejected", rejected)
    pairs = enumerate(zip(first, second, strict=False))
    length = next((number for number, (one, other) in pairs if one != other), min(len(first), len(second)))
    if isinstance(first, str):
        # "yet" and "you" both begin with "y", which is no prompt: go back to the last white space. The white space
        # itself belongs to the answers, because tokenizers attach it to the word that follows.
        while length and not first[length - 1].isspace():
            length -= 1
        length = len(first[:length].rstrip())
    if not 0 < length < min(len(first), len(second)):
        expected = "a prompt that both begin with"
        raise row_error(location, "no prompt", field="chosen", expected=expected, found="none")
    return first[:length], first[length:], second[length:]


PREFERENCE: Final = RowKind(
    "preference", ("chosen", "rejected"), _parse, optional=("prompt", "tools"), json_columns=("tools",)
)
