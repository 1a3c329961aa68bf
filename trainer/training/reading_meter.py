"""Reports how much of a dataset has been read. Rows are tokenised as they are read, so both are that far."""

from __future__ import annotations

from trainer.models import Activity
from trainer.training.events import EventHandler, PreparationAdvanced


class ReadingMeter:
    """Counts bytes and reports each further percent.

    Args:
        total: bytes of all files.
        report: receives the events.
    """

    def __init__(self, total: int, report: EventHandler) -> None:
        self._total = total
        self._report = report
        self._done = self._percent = 0

    def add(self, count: int) -> None:
        """Counts bytes that were read."""
        self._done += count
        percent = min(100, 100 * self._done // max(self._total, 1))
        if percent > self._percent:
            self._percent = percent
            self._report(PreparationAdvanced(activity=Activity.TOKENIZING, percent=percent))
