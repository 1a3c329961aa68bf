"""SIGTERM in the worker: it ends the run at once, but never in the middle of what must be whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Interruption(BaseException):
    """SIGTERM arrived. Not an `Exception`: no handler for what libraries raise may take it for one of theirs."""


class Interrupts:
    """Turns the first signal into an `Interruption`; later ones change nothing."""

    def __init__(self) -> None:
        self._depth = 0
        self._arrived = False
        self._raised = False

    def arrive(self, *_signal: object) -> None:
        """The signal's handler. Python calls it in the main thread, between two instructions of the program.

        Raises:
            Interruption: here and now, unless `deferred` holds it back.
        """
        self._arrived = True
        self._raise_if_due()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Hold a signal back until the end of the block; an error of the block goes first.

        Raises:
            Interruption: at the end of the block, if the signal came meanwhile.
        """
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        self._raise_if_due()

    def _raise_if_due(self) -> None:
        if self._arrived and not self._raised and not self._depth:
            self._raised = True
            raise Interruption
