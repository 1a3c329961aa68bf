"""Rows of a dataset: what a file may hold, checked strictly, told apart by its keys, in one shape for each kind.

Nothing here quotes a row: errors name file, row, field, and the types and lengths found.
"""

from trainer.data.rows.kinds import ROW_KINDS, RowSchema
from trainer.data.rows.reading import (
    DEFAULT_SCHEMA,
    ENDINGS,
    parse_row,
    read_files,
    read_rows,
    scan_rows,
    too_many_rows,
)
from trainer.data.rows.row import (
    ROLES,
    ChatRow,
    CompletionRow,
    Message,
    PreferenceRow,
    Row,
    TextRow,
    ToolCall,
    kind_name,
    row_texts,
)
from trainer.data.rows.values import describe

__all__ = [
    "DEFAULT_SCHEMA",
    "ENDINGS",
    "ROLES",
    "ROW_KINDS",
    "ChatRow",
    "CompletionRow",
    "Message",
    "PreferenceRow",
    "Row",
    "RowSchema",
    "TextRow",
    "ToolCall",
    "describe",
    "kind_name",
    "parse_row",
    "read_files",
    "read_rows",
    "row_texts",
    "scan_rows",
    "too_many_rows",
]
