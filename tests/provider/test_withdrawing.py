"""A provider takes its dataset back from a joint job, and hears whether it was in time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainer.errors import ErrorCode, SealingError, UnavailableError, UsageError
from trainer.exchange.withdrawal import read_withdrawal
from trainer.models import Phase, Status
from trainer.provider.job_events import watch_job
from trainer.provider.withdrawing import withdraw_dataset
from trainer.provider_keys import ProviderKey

KEY = ProviderKey(b"a" * 32)
SPEC = "ab" * 32
GRANT: Any = SimpleNamespace(
    number=2, grant=SimpleNamespace(job_spec_sha256=SPEC, sha256=lambda: "cd" * 32)
)
WAITING = Status(phase=Phase.AWAITING_DATASET, received=(1, 2))
OUT = Status(phase=Phase.AWAITING_DATASET, received=(1,), withdrawn=(2,))


class Job:
    """A carrier of a job with these statuses, one after the other."""

    def __init__(self, *statuses: Status) -> None:
        self.statuses, self.tokens = list(statuses), list[str]()

    def withdraw(self, token: str) -> None:
        self.tokens.append(token)

    def status(self) -> Status:
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    def events(self, _token: str | None) -> Any:
        return iter(self.statuses)


def test_it_returns_once_the_dataset_is_out() -> None:
    job, slept = Job(WAITING, Status(phase=Phase.OPENING), OUT), list[float]()
    withdraw_dataset(cast("Any", job), GRANT, KEY, sleep=slept.append)
    assert len(slept) == 2
    assert [read_withdrawal(token, (KEY.public,), SPEC) for token in job.tokens] == [
        (KEY.public, "cd" * 32)
    ]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (Status(phase=Phase.TRAINING), ErrorCode.WRONG_PHASE),
        (WAITING, ErrorCode.TIMEOUT),
    ],
)
def test_it_says_so_if_the_dataset_stays_in(status: Status, code: ErrorCode) -> None:
    with pytest.raises(UnavailableError) as caught:
        withdraw_dataset(cast("Any", Job(status)), GRANT, KEY, sleep=lambda _seconds: None)
    assert caught.value.code is code


def test_nothing_is_sent_to_a_job_of_one_provider() -> None:
    job = Job(WAITING)
    single: Any = SimpleNamespace(number=None)
    with pytest.raises(UsageError, match="one for a joint job"):
        withdraw_dataset(cast("Any", job), single, KEY)
    assert job.tokens == []


def test_a_submission_ends_when_its_dataset_is_taken_back_and_the_next_one_does_not() -> None:
    events = watch_job(cast("Any", Job(WAITING, OUT)), (), None, number=2)
    with pytest.raises(SealingError) as caught:
        list(events)
    assert caught.value.code is ErrorCode.GRANT_WITHDRAWN
    pulled = Status(phase=Phase.AWAITING_PULL)
    assert list(watch_job(cast("Any", Job(OUT, pulled)), (), None, number=2)) == [OUT, pulled]
