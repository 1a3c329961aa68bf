"""SHA-256 in a thread, in parallel to other work on the same bytes.

SHA-256 is slower than the cipher; in the same thread it would halve the speed of sealing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from trainer.sealing.age.ordered_thread_pool import OrderedThreadPool

# Below this size, handing a block to the thread costs more than it saves.
_MIN_THREADED_BYTES: Final = 1 << 18


class BackgroundHash:
    """SHA-256 of blocks in the order in which they are added; large blocks are hashed in a thread.

    Args:
        threads: a pool of one thread, so that blocks are hashed in order.
    """

    def __init__(self, threads: OrderedThreadPool[None]) -> None:
        self._threads = threads
        self._digest = hashlib.sha256()

    def update(self, block: bytes) -> None:
        """Adds a block. The caller may read it in the meantime, but not change it."""
        # A small block is hashed here only if the thread has finished all blocks before it.
        if self._threads.is_empty and len(block) < _MIN_THREADED_BYTES:
            self._digest.update(block)
            return
        if self._threads.is_full:
            self._threads.take_result()
        self._threads.submit(partial(self._digest.update, block))

    def hexdigest(self) -> str:
        """Returns the digest of all blocks in lower-case hex."""
        while not self._threads.is_empty:
            self._threads.take_result()
        return self._digest.hexdigest()


@contextmanager
def background_hash() -> Iterator[BackgroundHash]:
    """Yields a hash; its thread ends with the context."""
    with OrderedThreadPool[None](threads=1) as threads:
        yield BackgroundHash(threads)
