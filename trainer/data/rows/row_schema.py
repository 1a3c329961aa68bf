"""Turns an object of a file into a row: renames columns, chooses the kind of row, and parses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.data.rows.kinds import ROW_COLUMNS, ROW_KINDS
from trainer.data.rows.row import Row, RowLocation
from trainer.data.rows.row_kind import Document, RowKind
from trainer.data.rows.values import describe, parse_json_text, row_error
from trainer.errors import DataError


@dataclass(frozen=True)
class RowSchema:
    """How the objects of a dataset become rows; the job spec's `data` section without what concerns tokens.

    Attributes:
        format: a key of `ROW_KINDS`, or `auto` to choose the kind by the keys of each object.
        columns: a column's name in this project → its name in the files.
        ignored: columns that are left out; every other column must belong to the kind.
    """

    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()

    def parse_row(self, location: RowLocation, document: object, *, text_cells: bool = False) -> Row:
        """Parses an object into a row.

        Args:
            location: its file and index.
            document: the object as read.
            text_cells: whether the file's cells can hold text only.

        Raises:
            DataError: `DATASET_ROW_INVALID`, naming the field and the value expected there.
        """
        if not isinstance(document, dict):
            raise row_error(location, "not an object", expected="an object", found=describe(document))
        named = self._rename_columns(location, document) if self.columns or self.ignored else document
        kind = self._choose_kind(location, named)
        if text_cells:
            # A cell of a nested column holds JSON text; an empty one is null.
            nested = {column: text for column in kind.json_columns if isinstance(text := named.get(column), str)}
            named = dict(named) | {
                column: parse_json_text(location, column, text) if text else None
                for column, text in nested.items()
            }
        return kind.parse(location, named)

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


def _unknown_kind(location: RowLocation, keys: frozenset[str], kinds: tuple[RowKind, ...]) -> DataError:
    if len(kinds) == 1:
        optional = f" (and {', '.join(sorted(kinds[0].optional))})" if kinds[0].optional else ""
        expected = " and ".join(sorted(kinds[0].required)) + optional
    else:
        *first, last = (" and ".join(kind.required) for kind in kinds)
        expected = f"{', '.join(first)}, or {last}"
    # Only names of our own columns are shown: a file's column name may be part of its content.
    known = sorted(keys & ROW_COLUMNS)
    others = len(keys) - len(known)
    return row_error(
        location,
        "not the keys of one kind of row",
        expected=expected,
        found=f"{', '.join(known) or 'none of these'}{f' and {others} other keys' if others else ''}",
        hint="rename columns with data.columns, or leave them out with data.ignore_columns",
    )
