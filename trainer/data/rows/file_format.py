"""What the readers need to know about one file format: its suffixes, and the function that reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trainer.data.rows.data_file import DataFile
from trainer.errors import DataError

RawRow = object | bytes | DataError
"""The object that a row of a file holds; the line of JSON that has it, as bytes, parsed where the row is needed;
or the error that refuses this row while later rows are readable."""


@dataclass(frozen=True)
class FileFormat:
    """One format of data files.

    Attributes:
        suffixes: ends of file names in lower case, with the dot.
        read_raw_rows: opens a file and yields what it holds for each row. It raises `DataError` if the rest of the
            file is lost. Its memory is bounded by the longest row or batch, not by the size of the file.
        compressible: whether `.gz` may follow the suffix.
        in_folders: whether the files of a folder may have this format. If False, a file must be named by itself.
    """

    suffixes: tuple[str, ...]
    read_raw_rows: Callable[[DataFile], Iterator[RawRow]]
    compressible: bool = True
    in_folders: bool = True
