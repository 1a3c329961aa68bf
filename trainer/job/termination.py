"""SIGTERM in the supervisor: an error where it arrives, unless something better can be done there."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trainer.errors import ErrorCode, JobError


class Termination:
    """Whether the job was told to end, and what happens when it is."""

    def __init__(self) -> None:
        self.told = False
        self._instead: Callable[[], None] | None = None

    def arrive(self, *_signal: object) -> None:
        """The signal's handler.

        Raises:
            JobError: `interrupted`: so that the job can still seal a report of what happened. Not the first time
                within `instead`.
        """
        first, self.told = not self.told, True
        if self._instead is None or not first:
            raise JobError(ErrorCode.INTERRUPTED, "the job was told to end (SIGTERM)")
        self._instead()

    @contextmanager
    def instead(self, action: Callable[[], None]) -> Iterator[None]:
        """Have the first signal during the block call `action`, which sees to it that the block ends soon."""
        self._instead = action
        try:
            yield
        finally:
            self._instead = None


@contextmanager
def termination() -> Iterator[Termination]:
    """Take the signal over for the time of the context."""
    state = Termination()
    previous = signal.signal(signal.SIGTERM, state.arrive)
    try:
        yield state
    finally:
        signal.signal(signal.SIGTERM, previous)
