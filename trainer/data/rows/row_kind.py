"""What the readers need to know about one kind of row: its keys, and the function that parses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from trainer.data.rows.row import Row, RowLocation

Document = Mapping[str, object]
"""A row as read from a file: a JSON object, or the cells of a line by the names of their columns."""

MESSAGE_COLUMNS: Final = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
"""Columns of all kinds whose value may be a message or a list of messages."""


@dataclass(frozen=True)
class RowKind:
    """One kind of row.

    Attributes:
        name: value of `data.format` that selects this kind.
        required: keys that an object of this kind has, in the order in which errors list them.
        parse: makes the row from an object that `admits` its keys; raises `DataError`.
        optional: keys that an object of this kind may have.
        json_columns: keys whose value is a list or an object; where it is text, that text is parsed.
        alternative: keys that an object of this kind has instead of `required`; empty if there are none.
    """

    name: str
    required: tuple[str, ...]
    parse: Callable[[RowLocation, Document], Row]
    optional: tuple[str, ...] = ()
    json_columns: tuple[str, ...] = ()
    alternative: tuple[str, ...] = ()

    @cached_property
    def columns(self) -> frozenset[str]:
        """All keys that an object of this kind may have."""
        return frozenset(self.required + self.alternative + self.optional)

    def admits(self, keys: frozenset[str]) -> bool:
        """Returns whether an object with exactly these keys is of this kind."""
        return keys <= self.columns and any(
            map(keys.issuperset, filter(None, (self.required, self.alternative)))
        )
