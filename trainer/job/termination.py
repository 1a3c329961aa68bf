"""Handles SIGTERM in the supervisor: it raises an error, unless the stage can end better in another way."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from trainer.errors import ErrorCode, JobError

INTERRUPTED_MESSAGE: Final = "the job was asked to end (SIGTERM)"


class Termination:
    """Records whether SIGTERM has arrived, and does what the stage asks when it arrives.

    Attributes:
        signalled: whether the signal has arrived at least once.
    """

    def __init__(self) -> None:
        self.signalled = False
        self._action: Callable[[], None] | None = None

    def arrive(self, *_signal: object) -> None:
        """Handles the signal.

        Raises:
            JobError: `interrupted`, so that the job can still seal a failure report. Within `redirected_to`, only
                from the second signal on.
        """
        first, self.signalled = not self.signalled, True
        if self._action is None or not first:
            raise JobError(ErrorCode.INTERRUPTED, INTERRUPTED_MESSAGE)
        self._action()

    @contextmanager
    def redirected_to(self, action: Callable[[], None]) -> Iterator[None]:
        """Makes the first signal within the block call `action` instead, which makes the block end soon."""
        self._action = action
        try:
            yield
        finally:
            self._action = None


@contextmanager
def handle_termination() -> Iterator[Termination]:
    """Handles SIGTERM for the time of the context."""
    state = Termination()
    previous = signal.signal(signal.SIGTERM, state.arrive)
    try:
        yield state
    finally:
        signal.signal(signal.SIGTERM, previous)
