"""The registry of row kinds. Each kind is a `RowKind` object in a module of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trainer.data.rows.kinds.alpaca import ALPACA
from trainer.data.rows.kinds.messages import MESSAGES
from trainer.data.rows.kinds.plain_text import PLAIN_TEXT
from trainer.data.rows.kinds.preference import PREFERENCE
from trainer.data.rows.kinds.prompt_completion import PROMPT_COMPLETION
from trainer.data.rows.kinds.sharegpt import SHAREGPT
from trainer.data.rows.kinds.unpaired_preference import UNPAIRED_PREFERENCE
from trainer.data.rows.row_kind import RowKind

ROW_KINDS: Final[Mapping[str, RowKind]] = {
    kind.name: kind
    for kind in (
        MESSAGES,
        SHAREGPT,
        ALPACA,
        PROMPT_COMPLETION,
        PREFERENCE,
        PLAIN_TEXT,
        UNPAIRED_PREFERENCE,
    )
}
"""Every kind by the name that `data.format` gives it. No set of keys is admitted by two kinds."""

ROW_COLUMNS: Final = frozenset[str]().union(*(kind.columns for kind in ROW_KINDS.values()))
"""Every column that a row of some kind has."""
