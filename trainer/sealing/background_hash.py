"""SHA-256 beside the work on the same bytes: hashing is slower than the cipher and would hold it up."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from trainer.sealing.age.ordered_thread_pool import OrderedThreadPool

_WORTH_A_THREAD: Final = 1 << 18


class BackgroundHash:
    """SHA-256 of blocks, in their order, large ones in a thread.

    Args:
        threads: with one thread.
    """

    def __init__(self, threads: OrderedThreadPool[None]) -> None:
        self._threads = threads
        self._digest = hashlib.sha256()

    def update(self, block: bytes) -> None:
        """Add a block; it may be used meanwhile."""
        if self._threads.empty and len(block) < _WORTH_A_THREAD:
            self._digest.update(block)
            return
        if self._threads.full:
            self._threads.take()
        self._threads.submit(partial(self._digest.update, block))

    def hexdigest(self) -> str:
        """Lower-case hex of the digest of all blocks."""
        while not self._threads.empty:
            self._threads.take()
        return self._digest.hexdigest()


@contextmanager
def background_hash() -> Iterator[BackgroundHash]:
    """A hash whose thread, if it came to need one, ends with the context."""
    with OrderedThreadPool[None](threads=1) as threads:
        yield BackgroundHash(threads)
