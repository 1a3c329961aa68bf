"""Unpaired preferences: the keys of one answer, and `"label"`: true if the answer is desirable, else false.

The answer is prompt and completion, or a conversation of another kind, whose last turn is then judged.

Source: TRL's type "unpaired preference" (`prompt`, `completion`, `label`). LLaMA-Factory has `messages` and
`label`, or `conversations` and `kto_tag`, which `data.columns` renames.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from trainer.data.rows.kinds.alpaca import ALPACA
from trainer.data.rows.kinds.messages import MESSAGES
from trainer.data.rows.kinds.prompt_completion import PROMPT_COMPLETION
from trainer.data.rows.kinds.sharegpt import SHAREGPT
from trainer.data.rows.row import ChatRow, CompletionRow, RowLocation, UnpairedPreferenceRow
from trainer.data.rows.row_kind import Document, RowKind
from trainer.data.rows.values import refuse_value, row_error

_ANSWER_KINDS: Final = (PROMPT_COMPLETION, MESSAGES, SHAREGPT, ALPACA)
_ANSWER_COLUMNS: Final = frozenset[str]().union(*(kind.columns for kind in _ANSWER_KINDS))


def _parse(location: RowLocation, document: Document) -> UnpairedPreferenceRow:
    label = _parse_label(location, document["label"])
    answer_document = {key: value for key, value in document.items() if key != "label"}
    keys = frozenset(answer_document)
    kind = next((kind for kind in _ANSWER_KINDS if kind.admits(keys)), None)
    answer = kind.parse(location, answer_document) if kind else None
    if isinstance(answer, ChatRow) and not answer.prompt_messages:
        answer = _judge_last_turn(location, answer)
    if not isinstance(answer, ChatRow | CompletionRow):
        *first, last = (" and ".join(kind.required) for kind in _ANSWER_KINDS)
        raise row_error(
            location,
            "a label without an answer",
            field="label",
            expected=f"beside it {', '.join(first)}, or {last}",
            found=", ".join(sorted(keys)) or "nothing",
        )
    return UnpairedPreferenceRow(location.file, location.index, answer, label)


def _parse_label(location: RowLocation, value: object) -> bool:
    """Parses true or false, or the word of a cell that holds text only; pandas writes `True` and `False`."""
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else None
    if word not in ("true", "false"):
        refuse_value(
            location, "label", "true for a desirable answer, false for an undesirable one", value
        )
    return word == "true"


def _judge_last_turn(location: RowLocation, row: ChatRow) -> ChatRow:
    """Returns a conversation whose last turn is the answer, and all turns before it the prompt."""
    if row.messages[-1].role != "assistant" or len(row.messages) < 2:
        expected = "a conversation whose last turn is the assistant's answer to an earlier turn"
        raise row_error(
            location,
            "nothing to judge",
            field="label",
            expected=expected,
            found="another last turn",
        )
    return replace(row, prompt_messages=len(row.messages) - 1)


UNPAIRED_PREFERENCE: Final = RowKind(
    "unpaired_preference",
    ("label",),
    _parse,
    optional=tuple(sorted(_ANSWER_COLUMNS)),
    json_columns=tuple(sorted({column for kind in _ANSWER_KINDS for column in kind.json_columns})),
)
