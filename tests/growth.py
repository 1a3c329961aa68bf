"""How processor time grows with the size of an input: a ratio, which a slow or busy machine does not change."""

from __future__ import annotations

import time
from collections.abc import Callable

RUNS = 3


def shortest(work: Callable[[], object], runs: int = RUNS) -> float:
    """Returns the processor time in seconds of the shortest run: others on the machine only ever add time."""

    def run() -> float:
        begin = time.thread_time()
        work()
        return time.thread_time() - begin

    return min(run() for _ in range(runs))


def grows_linearly(work: Callable[[int], object], size: int) -> bool:
    """Returns whether `work` on 4 times the size takes under 8 times as long; quadratic work takes 16 times."""
    limit = 8 * shortest(lambda: work(size))
    return any(shortest(lambda: work(4 * size), 1) < limit for _ in range(RUNS))
