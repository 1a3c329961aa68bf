"""What the readers need to know about one kind of row: its keys, and the function that parses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from trainer.data.rows.row import Row, RowLocation

Document = Mapping[str, object]
"""A row as read from a file: a JSON object, or the cells of a line by the names of their columns."""


@dataclass(frozen=True)
class RowKind:
    """One kind of row.

    Attributes:
        name: value of `data.format` that selects this kind.
        required: keys that an object of this kind has, in the order in which errors list them.
        parse: makes the row from an object that `admits` its keys; raises `DataError`.
        optional: keys that an object of this kind may have.
        json_columns: keys whose value is a JSON text where a cell can hold text only (CSV).
    """

    name: str
    required: tuple[str, ...]
    parse: Callable[[RowLocation, Document], Row]
    optional: tuple[str, ...] = ()
    json_columns: tuple[str, ...] = ()

    @cached_property
    def columns(self) -> frozenset[str]:
        """All keys that an object of this kind may have."""
        return frozenset(self.required + self.optional)

    def admits(self, keys: frozenset[str]) -> bool:
        """Returns whether an object with exactly these keys is of this kind."""
        return keys.issuperset(self.required) and keys <= self.columns
