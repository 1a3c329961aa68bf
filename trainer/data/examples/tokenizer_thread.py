"""Tokenises in a thread of its own, ahead of what the results are needed for.

The tokenizer releases the global interpreter lock and divides a batch among all cores. It works on one batch at a
time, in the order in which they come, so the results and what it caches do not depend on the number of cores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

AHEAD: Final = 1
"""Batches that are with the tokenizer, or wait for it, while a result is taken."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class TokenizerThread:
    """One thread, which calls the tokenizer.

    The tokenizer caches words for each thread, and the C library gives each thread memory of its own to allocate
    from: so whoever tokenises many times keeps one.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    def each(
        self, items: Iterable[_Item], work: Callable[[_Item], _Result]
    ) -> Iterator[tuple[_Item, _Result]]:
        """Yields each item with the result of `work`, which the thread does while later items are made.

        Raises:
            Exception: whatever `work` raised for an item, in the item's turn.
        """
        waiting: deque[tuple[_Item, Future[_Result]]] = deque()
        for item in items:
            waiting.append((item, self._executor.submit(work, item)))
            if len(waiting) > AHEAD:
                first, result = waiting.popleft()
                yield first, result.result()
        for first, result in waiting:
            yield first, result.result()

    def close(self) -> None:
        """Drops what has not begun, and waits for what has."""
        self._executor.shutdown(wait=True, cancel_futures=True)
