"""SHA-256 beside the work on the same bytes: hashing is slower than the cipher and would hold it up."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from trainer.sealing.age.ordered_thread_pool import OrderedThreadPool

_WORTH_A_THREAD: Final = 1 << 18


class Hashing:
    """SHA-256 of blocks, in their order, large ones in a thread.

    Args:
        conveyor: with one thread.
    """

    def __init__(self, conveyor: OrderedThreadPool[None]) -> None:
        self._conveyor = conveyor
        self._digest = hashlib.sha256()

    def update(self, block: bytes) -> None:
        """Add a block; it may be used meanwhile."""
        if self._conveyor.empty and len(block) < _WORTH_A_THREAD:
            self._digest.update(block)
            return
        if self._conveyor.full:
            self._conveyor.take()
        self._conveyor.submit(partial(self._digest.update, block))

    def hexdigest(self) -> str:
        """Lower-case hex of the digest of all blocks."""
        while not self._conveyor.empty:
            self._conveyor.take()
        return self._digest.hexdigest()


@contextmanager
def hashing() -> Iterator[Hashing]:
    """A hash whose thread, if it came to need one, ends with the context."""
    with OrderedThreadPool[None](threads=1) as conveyor:
        yield Hashing(conveyor)
