"""A few threads that work on batches side by side and hand them back in order, with bounded memory.

The cipher and the system's reads and writes release Python's lock, so that threads help.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Generic, Self, TypeVar

from trainer.sealing.age.payload import PayloadOperation

T = TypeVar("T")

_MAX_THREADS: Final = 8  # beyond that memory bandwidth decides


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


THREADS: Final = min(_MAX_THREADS, _available_cpus())


class ChunkBatch:
    """Two buffers for one batch on its way: what goes in and what comes out.

    Attributes:
        source: room for a full batch going in; its first `filled` bytes are set.
        target: room for a full batch coming out; its first `done` bytes are set.
    """

    def __init__(self, direction: PayloadOperation) -> None:
        self.source = memoryview(bytearray(direction.source_batch))
        self.target = memoryview(bytearray(direction.target_batch))
        self.filled = 0
        self.done = 0

    @property
    def output(self) -> memoryview:
        """What came out."""
        return self.target[: self.done]


class OrderedThreadPool(Generic[T]):
    """Runs tasks in threads; results come back in the order of submission.

    Use as a context manager: on leaving, what has not started is dropped and what has is waited for.
    """

    def __init__(self, threads: int = THREADS) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="sealing")
        self._under_way: deque[Future[T]] = deque()
        self._room = threads + 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop what has not started, wait for the rest, end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def full(self) -> bool:
        """Whether a result must be taken before the next task is submitted."""
        return len(self._under_way) >= self._room

    @property
    def empty(self) -> bool:
        """Whether no result is left to take."""
        return not self._under_way

    def submit(self, task: Callable[[], T]) -> None:
        """Start a task as soon as a thread is free."""
        self._under_way.append(self._pool.submit(task))

    def take(self) -> T:
        """Wait for the oldest task and return its result, or raise what it raised."""
        return self._under_way.popleft().result()


class ChunkBatchPool:
    """Batches to be used again: no more are made than are on the way at one time."""

    def __init__(self, direction: PayloadOperation) -> None:
        self._direction = direction
        self._free: list[ChunkBatch] = []

    def get(self) -> ChunkBatch:
        """A batch whose content is of no interest."""
        batch = self._free.pop() if self._free else ChunkBatch(self._direction)
        batch.filled = batch.done = 0
        return batch

    def give_back(self, batch: ChunkBatch) -> None:
        """Let a batch be used again."""
        self._free.append(batch)
