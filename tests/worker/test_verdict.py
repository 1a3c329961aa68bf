"""What the supervisor is told of each kind of error, and that nothing a library said goes along."""

from __future__ import annotations

import errno
import os

import pytest

from trainer.errors import DataError, ErrorCode, ExitCode, JobError
from trainer.ipc.worker_messages import FROM_WORKER, Failed, worker_channel
from trainer.training.interruption import Interruption
from trainer.worker import __main__ as worker

SECRET = "a row of the dataset"


class SafetensorsError(Exception):
    """As raised by a library in Rust."""


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (OSError(errno.ENOSPC, SECRET), ErrorCode.WORKSPACE_FULL, ExitCode.JOB),
        (OSError(errno.EDQUOT, SECRET), ErrorCode.WORKSPACE_FULL, ExitCode.JOB),
        (
            SafetensorsError(f"{SECRET}: No space left on device (os error 28)"),
            ErrorCode.WORKSPACE_FULL,
            ExitCode.JOB,
        ),
        (OSError(errno.EIO, SECRET), ErrorCode.INTERNAL, ExitCode.BUG),
        (MemoryError(SECRET), ErrorCode.OUT_OF_MEMORY, ExitCode.JOB),
        (Interruption(), ErrorCode.INTERRUPTED, ExitCode.JOB),
        (ValueError(SECRET), ErrorCode.INTERNAL, ExitCode.BUG),
        (
            JobError(ErrorCode.TRAINING_DIVERGED, "the loss is not finite"),
            ErrorCode.TRAINING_DIVERGED,
            ExitCode.JOB,
        ),
        (
            DataError(ErrorCode.DATASET_OVERLONG, "the row is too long"),
            ErrorCode.DATASET_OVERLONG,
            ExitCode.JOB,
        ),
    ],
    ids=lambda value: getattr(value, "value", type(value).__name__),
)
def test_errors_have_codes(
    error: BaseException, code: ErrorCode, exit_code: ExitCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    reading, writing = os.pipe()
    monkeypatch.setattr(worker, "keep_to_itself", lambda: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(worker, "_receive_order", fail)
    assert worker.main(["--events-fd", str(writing)]) is exit_code
    os.close(writing)
    with os.fdopen(reading, "rb") as events:
        sent = events.read()
    message = FROM_WORKER.parse(sent)
    assert isinstance(message, Failed)
    assert message.code is code
    assert SECRET.encode() not in sent


def test_a_log_that_is_full_does_not_hide_what_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, "full")

        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "full")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    reading, writing = os.pipe()
    monkeypatch.setattr(worker, "keep_to_itself", lambda: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(worker, "_receive_order", fail)
    monkeypatch.setattr("sys.stderr", Full())
    assert worker.main(["--events-fd", str(writing)]) is ExitCode.JOB
    os.close(writing)
    with os.fdopen(reading, "rb") as events:
        message = FROM_WORKER.parse(events.read())
    assert isinstance(message, Failed)
    assert message.code is ErrorCode.WORKSPACE_FULL


@pytest.mark.parametrize(
    ("error", "traceback"),
    [
        (Interruption(), False),
        (JobError(ErrorCode.TRAINING_DIVERGED, "the loss is not finite"), False),
        (ValueError("unexpected"), True),
    ],
    ids=["interrupted", "on purpose", "unexpected"],
)
def test_only_what_nobody_expected_leaves_a_traceback(
    error: BaseException, traceback: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_channel: object) -> ExitCode:
        raise error

    reading, writing = os.pipe()
    worker._reporting_failure(fail, worker_channel(-1, writing))
    os.close(writing)
    os.close(reading)
    text = capsys.readouterr().err
    assert ("Traceback" in text) is traceback
    assert traceback or text.count("\n") == 1
