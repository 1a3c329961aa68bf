"""How long a submission waits for a job that does not answer, or was interrupted."""

from __future__ import annotations

import time
from typing import Final

from trainer.errors import UnavailableError, VerificationError
from trainer.provider.submission_request import ProgressReporter

_RETRY_SECONDS: Final = 2.0


class JobWait:
    """Waits between attempts, within a bound that begins with the first of them.

    Args:
        seconds: the bound.
        report: gets one line that says that the job is waited for, and why.
    """

    def __init__(self, seconds: float, report: ProgressReporter) -> None:
        self._seconds = seconds
        self._report = report
        self._since: float | None = None  # monotonic seconds

    def wait_after(self, error: UnavailableError | VerificationError) -> None:
        """Waits before another attempt.

        Raises:
            UnavailableError | VerificationError: `error`, if the job has been waited for long enough.
        """
        now = time.monotonic()
        if self._since is None:
            self._since = now
            minutes = self._seconds / 60
            self._report.line(f"  {error.message}; waiting up to {minutes:.0f} min for the job to go on")
        if now - self._since >= self._seconds:
            raise error
        time.sleep(_RETRY_SECONDS)

    def end(self) -> None:
        """Ends the wait: the job answers, and another one begins its own bound."""
        self._since = None
