"""Rows of a dataset: files of every format, read strictly into one class for each kind of row.

`formats/` holds the file formats, `kinds/` the kinds of rows, each with its registry. No
error quotes a row: an error names file, row and field, and describes a value by type and length.
"""

from trainer.data.rows.file_format import RawRow
from trainer.data.rows.formats import FOLDER_SUFFIXES
from trainer.data.rows.kinds import ROW_COLUMNS, ROW_KINDS
from trainer.data.rows.reading import (
    DEFAULT_SCHEMA,
    parse_raw_rows,
    parse_row,
    read_files,
    read_raw_rows,
    read_rows,
    scan_files,
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
    RowLocation,
    TextRow,
    ToolCall,
    UnpairedPreferenceRow,
)
from trainer.data.rows.row_files import RowFile, list_row_files
from trainer.data.rows.row_schema import RowSchema
from trainer.data.rows.values import describe, is_encodable

__all__ = [
    "DEFAULT_SCHEMA",
    "FOLDER_SUFFIXES",
    "ROLES",
    "ROW_COLUMNS",
    "ROW_KINDS",
    "ChatRow",
    "CompletionRow",
    "Message",
    "PreferenceRow",
    "RawRow",
    "Row",
    "RowFile",
    "RowLocation",
    "RowSchema",
    "TextRow",
    "ToolCall",
    "UnpairedPreferenceRow",
    "describe",
    "is_encodable",
    "list_row_files",
    "parse_raw_rows",
    "parse_row",
    "read_files",
    "read_raw_rows",
    "read_rows",
    "scan_files",
    "scan_rows",
    "too_many_rows",
]
