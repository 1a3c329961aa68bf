"""Turns an object of a file into a row: renames columns, chooses the kind of row, and parses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from trainer.data.rows.kinds import ROW_COLUMNS, ROW_KINDS
from trainer.data.rows.nested_text import begins_like_messages, parse_nested_text
from trainer.data.rows.row import Row, RowLocation
from trainer.data.rows.row_files import DEFAULT_EVAL_FILES
from trainer.data.rows.row_kind import MESSAGE_COLUMNS, Document, RowKind
from trainer.data.rows.values import describe, row_error
from trainer.errors import DataError

_INDEX_COLUMNS: Final = ("", "Unnamed: 0", "__index_level_0__")
"""What pandas calls the index of a data frame: in CSV, in CSV that was read and written again, and in Parquet."""


@dataclass(frozen=True)
class RowSchema:
    """How the objects of a dataset become rows; the job spec's `data` section without what concerns tokens.

    Attributes:
        format: a key of `ROW_KINDS`, or `auto` to choose the kind by the keys of each object.
        columns: a column's name in this project → its name in the files.
        ignored: columns that are left out; every other column must belong to the kind.
        ignored_message_keys: keys of messages that are left out, and counted.
        eval_files: pattern of the names of the files for evaluation.
    """

    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    ignored_message_keys: frozenset[str] = frozenset()
    eval_files: str = DEFAULT_EVAL_FILES

    def parse_row(self, location: RowLocation, document: object) -> Row:
        """Parses an object into a row.

        Args:
            location: its file and index.
            document: the object as read.

        Raises:
            DataError: `DATASET_ROW_INVALID`, naming the field and the value expected there.
        """
        if not isinstance(document, dict):
            raise row_error(
                location, "not an object", expected="an object", found=describe(document)
            )
        named = (
            self._rename_columns(location, document) if self.columns or self.ignored else document
        )
        kind = self._choose_kind(location, named)
        columns = _parse_text_columns(location, named, kind)
        if not self.ignored_message_keys:
            return kind.parse(location, columns)
        pairs = {
            column: _leave_out_keys(columns[column], self.ignored_message_keys)
            for column in MESSAGE_COLUMNS
            if column in columns
        }
        row = kind.parse(
            location, {**columns, **{column: value for column, (value, _) in pairs.items()}}
        )
        return replace(row, ignored_keys=sum(count for _, count in pairs.values()))

    def _rename_columns(self, location: RowLocation, document: Document) -> Document:
        renamed = {key: value for key, value in document.items() if key not in self.ignored}
        for name, name_in_file in self.columns.items():
            if name_in_file in renamed and name != name_in_file:
                if name in renamed:
                    raise row_error(
                        location,
                        "data.columns gives another column of the file this name too",
                        field=name,
                        expected="one of them",
                        found="both",
                    )
                renamed[name] = renamed.pop(name_in_file)
        return renamed

    def _choose_kind(self, location: RowLocation, document: Document) -> RowKind:
        keys = frozenset(document)
        candidates = ROW_KINDS.values() if self.format == "auto" else (ROW_KINDS[self.format],)
        for kind in candidates:
            if kind.admits(keys):
                return kind
        raise _unknown_kind(location, keys, tuple(candidates))


def _parse_text_columns(location: RowLocation, document: Document, kind: RowKind) -> Document:
    """Returns the row with lists and objects where it holds them as text."""
    parsed = {
        column: parse_nested_text(location, column, text)
        for column, text in document.items()
        if isinstance(text, str)
        and (
            column in kind.json_columns
            or (column in MESSAGE_COLUMNS and begins_like_messages(text))
        )
    }
    return {**document, **parsed} if parsed else document


def _leave_out_keys(value: object, keys: frozenset[str]) -> tuple[object, int]:
    """Returns a message or a list of messages without these keys, and how many there were."""
    if isinstance(value, dict):
        left = {key: item for key, item in value.items() if key not in keys}
        return left, len(value) - len(left)
    if not isinstance(value, list):
        return value, 0
    items = [_leave_out_keys(item, keys) if isinstance(item, dict) else (item, 0) for item in value]
    return [item for item, _ in items], sum(count for _, count in items)


def _unknown_kind(
    location: RowLocation, keys: frozenset[str], kinds: tuple[RowKind, ...]
) -> DataError:
    if len(kinds) == 1:
        optional = f" (and {', '.join(sorted(kinds[0].optional))})" if kinds[0].optional else ""
        expected = " and ".join(sorted(kinds[0].required)) + optional
    else:
        *first, last = (" and ".join(kind.required) for kind in kinds)
        expected = f"{', '.join(first)}, or {last}"
    # Only names of our own columns are shown: a file's column name may be part of its content.
    known = sorted(keys & ROW_COLUMNS)
    indexes = [json.dumps(name) for name in _INDEX_COLUMNS if name in keys]
    shown = ", ".join([*known, *(f"the column {name}" for name in indexes)]) or "none of these"
    others = len(keys) - len(known) - len(indexes)
    hint = "rename columns with data.columns, or leave them out with data.ignore_columns"
    if indexes:
        hint = (
            f"leave out the index of a data frame with data.ignore_columns: [{', '.join(indexes)}]"
        )
    return row_error(
        location,
        "not the keys of one kind of row",
        expected=expected,
        found=f"{shown}{f' and {others} other keys' if others else ''}",
        hint=hint,
    )
