"""Which kind of row an object is: told by its keys, or named by the job spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from trainer.data.rows.chats import Document, alpaca, chat, sharegpt
from trainer.data.rows.pairs import completion, preference, whole
from trainer.data.rows.row import Row
from trainer.data.rows.values import describe, json_text, refused
from trainer.errors import DataError


@dataclass(frozen=True)
class RowKind:
    """One kind of row.

    Attributes:
        parse: makes a row of an object that has the right keys.
        required: keys that must be there.
        optional: keys that may be there.
    """

    parse: Callable[[Row, Document], Row]
    required: frozenset[str]
    optional: frozenset[str] = frozenset()

    def admits(self, keys: frozenset[str]) -> bool:
        """Whether an object with these keys is of this kind."""
        return self.required <= keys <= self.required | self.optional


ROW_KINDS: Final[Mapping[str, RowKind]] = {
    "messages": RowKind(chat, frozenset({"messages"}), frozenset({"tools"})),
    "sharegpt": RowKind(sharegpt, frozenset({"conversations"}), frozenset({"system", "tools"})),
    "alpaca": RowKind(alpaca, frozenset({"instruction", "output"}), frozenset({"input", "system", "history"})),
    "prompt_completion": RowKind(completion, frozenset({"prompt", "completion"}), frozenset({"tools"})),
    "preference": RowKind(preference, frozenset({"chosen", "rejected"}), frozenset({"prompt", "tools"})),
    "text": RowKind(whole, frozenset({"text"})),
}
"""Kinds of rows by the name that `data.format` gives them. No object is of two kinds."""

KEYS: Final = frozenset().union(*(kind.required | kind.optional for kind in ROW_KINDS.values()))

_NESTED: Final = ("messages", "conversations", "tools", "history")
"""Columns that hold JSON where a file can hold text only."""

_CHOICES: Final = (
    "messages, conversations, instruction and output, prompt and completion, chosen and rejected, or text"
)


@dataclass(frozen=True)
class RowSchema:
    """How the objects of a dataset become rows.

    Attributes:
        format: a key of `ROW_KINDS`, or `auto`: told by the keys of each object.
        columns: our name of a column → the name that it has in the files.
        ignored: columns that are left out; all others must belong to the kind.
    """

    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()

    def row(self, place: Row, document: object, *, cells: bool = False) -> Row:
        """The row that an object stands for.

        Args:
            place: its file and index.
            document: the object as read.
            cells: whether it comes from a file whose cells can hold text only.

        Raises:
            DataError: `DATASET_ROW_INVALID`, naming the field and what it must be.
        """
        if not isinstance(document, dict):
            raise refused(place, "not an object", expected="an object", found=describe(document))
        named = self._named(place, document) if self.columns or self.ignored else document
        if cells:
            named = _parsed_cells(place, named)
        return self._kind(place, named).parse(place, named)

    def _named(self, place: Row, document: Document) -> Document:
        named = {key: value for key, value in document.items() if key not in self.ignored}
        for ours, theirs in self.columns.items():
            if theirs in named and ours != theirs:
                if ours in named:
                    raise refused(
                        place,
                        "a column of this name and one that data.columns calls so",
                        field=ours,
                        expected="one of them",
                        found="both",
                    )
                named[ours] = named.pop(theirs)
        return named

    def _kind(self, place: Row, document: Document) -> RowKind:
        keys = frozenset(document)
        if self.format != "auto":
            kind = ROW_KINDS[self.format]
            if kind.admits(keys):
                return kind
            raise _wrong_keys(place, keys, _keys_of(kind))
        kind_of_keys = next((kind for kind in ROW_KINDS.values() if kind.admits(keys)), None)
        if kind_of_keys is None:
            raise _wrong_keys(place, keys, _CHOICES)
        return kind_of_keys


def _parsed_cells(place: Row, document: Document) -> Document:
    """Cells of text: those of nested columns are JSON, and an empty one is none."""
    return {
        key: (json_text(place, key, value) if value else None)
        if key in _NESTED and isinstance(value, str)
        else value
        for key, value in document.items()
    }


def _keys_of(kind: RowKind) -> str:
    beside = f" (and {', '.join(sorted(kind.optional))})" if kind.optional else ""
    return " and ".join(sorted(kind.required)) + beside


def _wrong_keys(place: Row, keys: frozenset[str], expected: str) -> DataError:
    known = sorted(KEYS & keys)
    others = len(keys) - len(known)
    return refused(
        place,
        "not the keys of one kind of row",
        expected=expected,
        found=f"{', '.join(known) or 'none of these'}{f' and {others} other keys' if others else ''}",
        hint="name columns in data.columns, or leave them out with data.ignore_columns; none is ignored unasked",
    )
