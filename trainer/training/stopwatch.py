"""Measures the wall-clock time of the parts of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the seconds of each part by its name. `total` is the time since this object was created.

    Args:
        clock: returns seconds; must be monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._started = clock()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the duration of a block to the part `name`."""
        started = self._clock()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - started

    def put(self, name: str, seconds: float) -> None:
        """Sets the duration of a part that was measured elsewhere."""
        self._seconds[name] = seconds

    def read(self) -> dict[str, float]:
        """Returns the seconds of each part and the total, rounded to milliseconds."""
        total = self._clock() - self._started
        return {name: round(value, 3) for name, value in (*self._seconds.items(), ("total", total))}
