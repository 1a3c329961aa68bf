"""How long a submission waits for a job that does not answer, or was interrupted."""

from __future__ import annotations

import time
from collections import Counter
from typing import Final

from trainer.durations import describe_duration
from trainer.errors import UnavailableError, VerificationError
from trainer.provider.submission_request import ProgressReporter

_RETRY_SECONDS: Final = 2.0


class JobWait:
    """Waits between attempts, within a bound that begins with the first of them.

    Args:
        seconds: the bound.
        report: gets one line for each reason to wait, and how often there was one at the end.
    """

    def __init__(self, seconds: float, report: ProgressReporter) -> None:
        self._seconds = seconds
        self._report = report
        self._since: float | None = None  # monotonic seconds
        self._reasons: Counter[str] = Counter()

    def remaining(self) -> float:
        """Returns how long an answer may still be waited for, in seconds."""
        spent = 0.0 if self._since is None else time.monotonic() - self._since
        return max(0.0, self._seconds - spent)

    def wait_after(self, error: UnavailableError | VerificationError) -> None:
        """Waits before another attempt; what a carrier has waited by itself counts.

        Raises:
            UnavailableError | VerificationError: `error`, if the job has been waited for long enough.
        """
        now = time.monotonic()
        self._reasons[error.message] += 1
        if self._since is None:
            self._since = now - (error.waited if isinstance(error, UnavailableError) else 0.0)
            bound = describe_duration(round(self._seconds))
            self._report.line(f"  {error.message}; waiting up to {bound} for the job to go on")
        elif self._reasons[error.message] == 1:
            self._report.line(f"  {error.message}")
        if now - self._since >= self._seconds:
            self._report.line(f"  given up{self._count_reasons()}")
            raise error
        time.sleep(_RETRY_SECONDS)

    def end(self) -> None:
        """Ends the wait: the job answers, and another one begins its own bound."""
        if self._since is not None:
            self._report.line(f"  the job answers again{self._count_reasons()}")
        self._since = None
        self._reasons.clear()

    def _count_reasons(self) -> str:
        """Returns how often each reason was given, if one was given more than once."""
        if not self._reasons or max(self._reasons.values()) == 1:
            return ""
        return f" (attempts: {'; '.join(f'{reason}: {count}' for reason, count in self._reasons.items())})"
