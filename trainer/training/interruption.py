"""Turns SIGTERM into an exception that ends the run, and defers it while the state is inconsistent.

An exception that a signal handler raises can come between any two bytecode instructions. Inside an optimizer step
it would leave some parameters updated and others not, and the checkpoint of such a state would be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Interruption(BaseException):
    """SIGTERM has arrived. Derives from `BaseException`, so that no `except Exception` in a library catches it."""


class Interrupts:
    """Raises `Interruption` for the first signal and ignores later ones: these would interrupt the clean-up."""

    def __init__(self) -> None:
        self._depth = 0
        self._arrived = False
        self._raised = False

    def arrive(self, *_signal: object) -> None:
        """Handles the signal. Python calls this in the main thread, between two bytecode instructions.

        Raises:
            Interruption: on the first signal, except inside a `deferred` block.
        """
        self._arrived = True
        self._raise_if_due()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defers the interruption to the end of the block. Blocks may be nested: the outermost one counts.

        Raises:
            Interruption: at the end of the block, if a signal has arrived and the block has raised no error.
        """
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        # Not in `finally`: an interruption would replace the error that the block raised.
        self._raise_if_due()

    def _raise_if_due(self) -> None:
        """Raises `Interruption` once, if a signal has arrived and no block defers it."""
        if self._arrived and not self._raised and not self._depth:
            self._raised = True
            raise Interruption
