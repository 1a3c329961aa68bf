"""Refusals of a dataset: those that differ in their row only are one group, with a count."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from trainer.data.examples.conservation import UnrenderedError
from trainer.errors import DataError

SHOWN_GROUPS: Final = 20
SHOWN_ROWS: Final = 5
"""Rows of a group that are named."""

_INDEX: Final = re.compile(r"\[[0-9]+\]")


@dataclass
class RefusalGroup:
    """Refusals of one file that say the same.

    Attributes:
        first: the first of them.
        count: how many there are.
        rows: zero-based index of the first `SHOWN_ROWS` rows among them.
    """

    first: DataError
    count: int = 0
    rows: list[int] = field(default_factory=list)

    def add(self, error: DataError) -> None:
        """Counts another refusal."""
        self.count += 1
        if error.row is not None and len(self.rows) < SHOWN_ROWS:
            self.rows.append(error.row)

    def __str__(self) -> str:
        """Returns the first refusal, and how many more rows it is about."""
        if self.count == 1:
            return str(self.first)
        rows, more = ", ".join(map(str, self.rows[1:])), self.count - max(1, len(self.rows))
        others = f"rows {rows} and {more} more" if more else f"rows {rows}"
        return f"{self.first} (and {others if rows else f'{more} times more'})"


@dataclass
class Refusals:
    """All refusals of a dataset, in numbers.

    Attributes:
        codes: error code → number of refusals.
        unrendered: part of a conversation → number of rows that are refused because the template omits it.
    """

    codes: Counter[str] = field(default_factory=Counter)
    unrendered: Counter[str] = field(default_factory=Counter)
    _groups: dict[tuple[object, ...], RefusalGroup] = field(default_factory=dict)

    @property
    def groups(self) -> Sequence[RefusalGroup]:
        """The first `SHOWN_GROUPS` groups, in the order of their first refusals."""
        return tuple(self._groups.values())

    @property
    def not_shown(self) -> int:
        """Number of refusals in no group of `groups`."""
        return self.codes.total() - sum(group.count for group in self._groups.values())

    def add(self, error: DataError) -> None:
        """Counts a refusal."""
        self.codes[error.code.value] += 1
        if isinstance(error, UnrenderedError):
            self.unrendered.update(error.parts.keys())
        place = None if error.field is None else _INDEX.sub("[]", error.field)
        key = (error.code, error.file, place, error.reason, str(error.expected))
        if key in self._groups or len(self._groups) < SHOWN_GROUPS:
            self._groups.setdefault(key, RefusalGroup(error)).add(error)
