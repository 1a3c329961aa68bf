"""Draws the held-out rows that task metrics judge."""

from __future__ import annotations

import random

from trainer.data.examples.row_outcomes import RowOutcomes
from trainer.data.examples.row_summary import RowSummary
from trainer.data.rows import Row


def can_be_held_out(row: RowSummary) -> bool:
    """Returns whether a row may be held out, as far as the row itself says."""
    return row.examples is not None and (row.in_evaluation_file or row.examples.held_by_hash)


class TaskDraw:
    """Draws held-out rows while all rows are read, so that memory never holds more than `evaluation.max_rows`.

    Every held-out row is drawn with the same probability. Source: algorithm R, Vitter 1985, "Random sampling with
    a reservoir".

    Args:
        most: number of rows at most.
        seed: decides which. It is not secret: a resumed run must judge the same rows.
    """

    def __init__(self, most: int, *, seed: int) -> None:
        self._most = most
        self._seed = seed
        self._by_files = False
        self._start()

    def _start(self) -> None:
        self._random = random.Random(self._seed)  # noqa: S311 -- see `seed`
        self._count = 0
        self._drawn: list[tuple[int, Row]] = []

    def add(self, row: Row | None, summary: RowSummary, outcomes: RowOutcomes) -> None:
        """Takes the next row into account if it is held out.

        Args:
            row: the row; None if `can_be_held_out` is False of it.
            summary: its summary.
            outcomes: has counted the row as its last one.
        """
        # From the first row of a file for evaluation on, the files decide. No row before it is in one, and those
        # that were held out by their hashes are not any more.
        if outcomes.by_files != self._by_files:
            self._by_files = outcomes.by_files
            self._start()
        if row is not None and summary.examples is not None and outcomes.held_out[-1]:
            self.add_held_out(row)

    def add_held_out(self, row: Row) -> None:
        """Takes the next held-out row into account."""
        number, self._count = self._count, self._count + 1
        if number < self._most:
            self._drawn.append((number, row))
        elif (place := self._random.randrange(self._count)) < self._most:
            self._drawn[place] = (number, row)

    @property
    def rows(self) -> list[Row]:
        """The drawn rows, in their order."""
        return [row for _, row in sorted(self._drawn, key=lambda item: item[0])]

    @property
    def not_drawn(self) -> int:
        """Number of rows that were not drawn."""
        return self._count - len(self._drawn)
