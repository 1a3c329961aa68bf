"""The registry of file formats. Each format is a `FileFormat` object in a module of this package."""

from __future__ import annotations

from pathlib import PurePath
from typing import Final

from trainer.data.rows.file_format import FileFormat
from trainer.data.rows.formats.delimited import COMMA_SEPARATED, TAB_SEPARATED
from trainer.data.rows.formats.json_format import JSON_DOCUMENT, JSON_LINES
from trainer.data.rows.formats.table_format import ARROW_IPC, PARQUET
from trainer.data.rows.formats.text_format import TEXT_DOCUMENT

FILE_FORMATS: Final = (
    JSON_LINES,
    JSON_DOCUMENT,
    COMMA_SEPARATED,
    TAB_SEPARATED,
    TEXT_DOCUMENT,
    PARQUET,
    ARROW_IPC,
)

_COMPRESSED: Final = ".gz"

FOLDER_SUFFIXES: Final = (
    *(suffix for format_ in FILE_FORMATS if format_.in_folders for suffix in format_.suffixes),
    *(
        suffix + _COMPRESSED
        for format_ in FILE_FORMATS
        if format_.in_folders and format_.compressible
        for suffix in format_.suffixes
    ),
)
"""Suffixes of the files that a folder of data may hold."""


def find_format(name: str) -> FileFormat:
    """Returns the format that the suffix of a file's name selects; JSON lines for every unknown suffix."""
    suffix = PurePath(name.lower().removesuffix(_COMPRESSED)).suffix
    return next((format_ for format_ in FILE_FORMATS if suffix in format_.suffixes), JSON_LINES)
