"""A thread pool whose results come back in the order of submission, with a bounded number of tasks in flight."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Generic, Self, TypeVar

T = TypeVar("T")

_MAX_THREADS: Final = 8  # with more threads, memory bandwidth is the limit

# A container may use fewer CPUs than the machine has. Only Linux has `sched_getaffinity`.
_CPUS: Final = (
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
)

THREADS: Final = min(_MAX_THREADS, _CPUS)


class OrderedThreadPool(Generic[T]):
    """Runs tasks in threads and returns their results in the order of submission.

    Threads help although this is Python: the cipher, SHA-256 and file I/O release the global interpreter lock. On
    leaving the context, tasks that have not started are cancelled and running ones are waited for.

    Args:
        threads: number of threads; at most `threads + 1` results are held at a time.
    """

    def __init__(self, threads: int = THREADS) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="sealing")
        self._in_flight: deque[Future[T]] = deque()
        self._max_in_flight = threads + 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    @property
    def is_full(self) -> bool:
        """Whether a result must be taken before the next task may be submitted."""
        return len(self._in_flight) >= self._max_in_flight

    @property
    def is_empty(self) -> bool:
        """Whether every result was taken."""
        return not self._in_flight

    def submit(self, task: Callable[[], T]) -> None:
        """Queues a task; it starts as soon as a thread is free."""
        self._in_flight.append(self._executor.submit(task))

    def take_result(self) -> T:
        """Waits for the oldest task and returns its result, or raises the exception that it raised."""
        return self._in_flight.popleft().result()
