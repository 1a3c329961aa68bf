"""The job's output: a closed set of typed public events, and a private log that is sealed.

Inside the TEE nothing else may reach stdout or stderr. `take_over_output` keeps the real stdout for the public
events and redirects file descriptors 1 and 2 to the private log, which therefore gets what libraries print, C
libraries and tracebacks included.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, TextIO

from trainer.errors import ErrorCode, TrainerError
from trainer.models import Activity, Phase

private: Final = logging.getLogger("trainer")
"""Logger for private content. It writes to the sealed log only, and drops records until that is open."""
private.addHandler(logging.NullHandler())
private.propagate = False

MAX_REPEATS: Final = 20
"""Records with one and the same text that the private log gets: anyone who reaches the job can cause some."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PublicEvent:
    """One line of public output. Subclasses hold enums, counts and public digests; never free text."""

    event: ClassVar[str]

    def fields(self) -> dict[str, str | int | None]:
        """Returns the event's fields as JSON values.

        Raises:
            TypeError: a field is not an enum, a count or a digest.
        """
        return {name: _public_value(value) for name, value in vars(self).items()}


def _public_value(value: object) -> str | int | None:
    # By type, at run time: a text that an event got by mistake, such as an error's message, is never printed.
    if isinstance(value, Phase | Activity | ErrorCode):
        return value.value
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return value
    raise TypeError("a public field must be an enum, a count or a SHA-256 digest")


@dataclass(frozen=True)
class PhaseEntered(PublicEvent):
    """The job entered another phase."""

    event = "phase"
    phase: Phase


@dataclass(frozen=True)
class SpecLoaded(PublicEvent):
    """The job spec was read; its digest is public."""

    event = "spec"
    sha256: str


@dataclass(frozen=True)
class Listening(PublicEvent):
    """The front serves; the TLS key's digest is also in the claims."""

    event = "listening"
    port: int
    tls_spki_sha256: str | None


@dataclass(frozen=True)
class DatasetReceived(PublicEvent):
    """A sealed dataset has arrived; sizes of ciphertext are public."""

    event = "dataset-received"
    bytes: int


@dataclass(frozen=True)
class DatasetRefused(PublicEvent):
    """A dataset was refused before the first optimizer step; details are in its sealed report only."""

    event = "dataset-refused"
    code: ErrorCode
    tries_left: int


@dataclass(frozen=True)
class DatasetWithdrawn(PublicEvent):
    """A provider of a joint job has taken its dataset back; the job waits for another one of it."""

    event = "dataset-withdrawn"
    number: int


@dataclass(frozen=True)
class PreparationProgress(PublicEvent):
    """The worker goes on towards its first step."""

    event = "preparation"
    activity: Activity
    percent: int | None
    eta_seconds: int | None


@dataclass(frozen=True)
class TrainingProgress(PublicEvent):
    """An optimizer step ended."""

    event = "progress"
    step: int
    total_steps: int
    eta_seconds: int | None


@dataclass(frozen=True)
class CheckpointSealed(PublicEvent):
    """The state after a step was sealed into the ciphertext directory."""

    event = "checkpoint-sealed"
    step: int
    bytes: int


@dataclass(frozen=True)
class CheckpointMissed(PublicEvent):
    """The state after a step could not be sealed; training continues."""

    event = "checkpoint-missed"
    step: int
    code: ErrorCode


@dataclass(frozen=True)
class CheckpointRefused(PublicEvent):
    """A file with the name of a checkpoint does not open: it is of another job, or damaged. It is skipped."""

    event = "checkpoint-refused"
    code: ErrorCode


@dataclass(frozen=True)
class Resumed(PublicEvent):
    """Training goes on after this step."""

    event = "resumed"
    step: int


@dataclass(frozen=True)
class StartsOver(PublicEvent):
    """Training starts at the beginning although there are checkpoints: none of these belongs to this dataset."""

    event = "starts-over"
    unusable: int


@dataclass(frozen=True)
class ResultSealed(PublicEvent):
    """The sealed result (or failure report) can be pulled."""

    event = "result-sealed"
    bytes: int


@dataclass(frozen=True)
class JobFailed(PublicEvent):
    """The job failed; details are in the sealed failure report only."""

    event = "failed"
    code: ErrorCode


class PublicLog:
    """Writes public events as JSON lines to one text stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, event: PublicEvent) -> None:
        """Writes one event. A reader that has gone away does not stop the job."""
        line = json.dumps({"time": int(time.time()), "event": event.event, **event.fields()})
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except OSError:
            private.warning("public output is closed")


def take_over_output(private_log: Path) -> PublicLog:
    """Redirects file descriptors 1 and 2 to `private_log`; returns the only writer of the real stdout.

    Args:
        private_log: file on the job's private tmpfs; appended to.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    public_stream = os.fdopen(os.dup(1), "w", encoding="ascii")
    # Descriptors and not `sys.stdout`: C libraries, and the interpreter at a crash, write to 1 and 2 directly.
    log = os.open(private_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    private.addHandler(limited_handler(sys.stderr))
    private.setLevel(logging.INFO)
    return PublicLog(public_stream)


def log_error(event: str, error: BaseException) -> None:
    """Writes an error to the private log: one line if it was raised on purpose, else with its traceback.

    Args:
        event: what happened, without a reason.
        error: why; its text may be private.
    """
    if isinstance(error, TrainerError):
        private.warning(event + ": %s (%s)", error, error.code.value)
    else:
        private.error(event, exc_info=error)


def limited_handler(stream: TextIO) -> logging.Handler:
    """Returns a handler for the private log that writes each message at most `MAX_REPEATS` times."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(process)d %(message)s"))
    handler.addFilter(_RepeatLimit())
    return handler


class _RepeatLimit(logging.Filter):
    """Passes the first `MAX_REPEATS` records of each message; the last of them says that others are left out."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        count = self._counts[record.msg] = self._counts[record.msg] + 1
        if count == MAX_REPEATS:
            record.msg += " [further ones are left out]"
        return count <= MAX_REPEATS
