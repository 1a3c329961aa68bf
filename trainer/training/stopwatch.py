"""How long each part of a run took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds by part; `total` counts from the making of this object."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._started = clock()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure a block; parts of one name add up."""
        started = self._clock()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - started

    def put(self, name: str, seconds: float) -> None:
        """Add what was measured elsewhere."""
        self._seconds[name] = seconds

    def read(self) -> dict[str, float]:
        """Seconds by part and in total, to the millisecond."""
        total = self._clock() - self._started
        return {name: round(value, 3) for name, value in (*self._seconds.items(), ("total", total))}
