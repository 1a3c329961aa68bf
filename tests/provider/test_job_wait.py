"""A job that does not answer is waited for: each reason is said once, and how often it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from trainer.errors import ErrorCode, UnavailableError
from trainer.provider.job_wait import JobWait
from trainer.provider.submission_request import ProgressReporter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("trainer.provider.job_wait.time.monotonic", lambda: now[0])
    monkeypatch.setattr(
        "trainer.provider.job_wait.time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds)
    )
    return now


def error(message: str) -> UnavailableError:
    return UnavailableError(ErrorCode.JOB_UNREACHABLE, message)


def test_a_reason_is_said_once_with_a_count(clock: list[float]) -> None:
    lines: list[str] = []
    wait = JobWait(900, cast("ProgressReporter", SimpleNamespace(line=lines.append)))
    for message in ("refused", "refused", "no route", "refused", "no route"):
        wait.wait_after(error(message))
    assert lines == ["  refused; waiting up to 15 min for the job to go on", "  no route"]
    wait.end()
    wait.end()
    assert lines[2:] == ["  the job answers again (attempts: refused: 3; no route: 2)"]
    wait.wait_after(error("refused"))
    assert lines[3:] == ["  refused; waiting up to 15 min for the job to go on"]
    wait.end()
    assert lines[4:] == ["  the job answers again"]
    assert clock[0] > 0


def test_what_a_carrier_has_waited_counts(clock: list[float]) -> None:
    wait = JobWait(60, cast("ProgressReporter", SimpleNamespace(line=[].append)))
    late = error("no status in 50 s")
    late.waited = 50.0
    for _ in range(5):
        assert wait.remaining() == pytest.approx(60 if clock[0] == 0 else 10 - clock[0])
        wait.wait_after(late)
    assert wait.remaining() == 0
    with pytest.raises(UnavailableError, match="no status"):
        wait.wait_after(late)
    assert clock[0] == 10


def test_a_wait_has_its_bound(clock: list[float]) -> None:
    lines: list[str] = []
    wait = JobWait(60, cast("ProgressReporter", SimpleNamespace(line=lines.append)))
    for _ in range(30):
        wait.wait_after(error("refused"))
    with pytest.raises(UnavailableError, match="refused"):
        wait.wait_after(error("refused"))
    assert clock[0] == 60
    assert lines == [
        "  refused; waiting up to 60 s for the job to go on",
        "  given up (attempts: refused: 31)",
    ]
