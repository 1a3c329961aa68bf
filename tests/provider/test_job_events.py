"""What a status or an event of a job says is shown, and never more than that."""

from __future__ import annotations

from typing import Any, cast

import pytest

from trainer.errors import ErrorCode, ExitCode, JobError, SealingError, TrainerError
from trainer.models import Activity, Phase, Status
from trainer.provider.job_events import (
    PrivateMetrics,
    RefusedBeforeError,
    describe_training,
    watch_job,
)
from trainer.provider.transport.carrier import Carrier


class Job:
    """A carrier with one status."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def events(self, _token: str | None) -> Any:
        yield self._status


@pytest.mark.parametrize(
    ("phase", "error", "kind", "code"),
    [
        (Phase.FAILED, "worker-died", JobError, ErrorCode.WORKER_DIED),
        (Phase.FAILED, "made-up", JobError, ErrorCode.JOB_FAILED),
        (Phase.FAILED, None, JobError, ErrorCode.JOB_FAILED),
        (Phase.AWAITING_DATASET, "bundle-invalid", SealingError, ErrorCode.BUNDLE_INVALID),
        (Phase.AWAITING_DATASET, "made-up", SealingError, ErrorCode.JOB_FAILED),
    ],
)
def test_a_code_that_nobody_knows_is_no_bug_of_ours(
    phase: Phase, error: str | None, kind: type[TrainerError], code: ErrorCode
) -> None:
    job = cast("Carrier", Job(Status(phase=phase, error=error)))
    with pytest.raises(kind) as caught:
        list(watch_job(job, (), None))
    assert caught.value.code is code


def test_a_refused_dataset_ends_the_watch_and_its_report_can_be_pulled() -> None:
    status = Status(phase=Phase.AWAITING_DATASET, error="dataset-row-invalid", result_bytes=7)
    assert list(watch_job(cast("Carrier", Job(status)), (), None)) == [status]
    with pytest.raises(RefusedBeforeError) as caught:
        list(
            watch_job(
                cast("Carrier", Job(status.model_copy(update={"result_bytes": None}))), (), None
            )
        )
    assert (caught.value.code, caught.value.exit_code) == (
        ErrorCode.DATASET_ROW_INVALID,
        ExitCode.JOB,
    )


def test_a_line_of_metrics_has_numbers_only() -> None:
    metrics = PrivateMetrics(
        {"step": 3, "loss": 1.25, "eval_loss": "x" * 10_000, "grad_norm": [1], "other": 5}
    )
    assert metrics.shown() == {"step": "3", "loss": "1.25"}
    assert not PrivateMetrics({"step": 10**400, "eval_loss": True}).shown()


@pytest.mark.parametrize(
    ("status", "line"),
    [
        ({"activity": Activity.TOKENIZING, "percent": 0}, "tokenizing 0 %"),
        (
            {"activity": Activity.TOKENIZING, "percent": 35, "eta_seconds": 40},
            "tokenizing 35 %, 40 s left",
        ),
        ({"activity": Activity.LOADING}, "loading"),
        ({"step": 3, "total_steps": 20, "eta_seconds": 41}, "step 3 of 20, 41 s left"),
        ({}, ""),
    ],
)
def test_how_far_training_is_fits_one_line(status: dict[str, Any], line: str) -> None:
    assert describe_training(Status(phase=Phase.TRAINING, **status)) == line


def test_in_a_joint_job_the_refusals_of_others_are_not_ones_own() -> None:
    others = Status(phase=Phase.AWAITING_DATASET, error="grants-differ", received=(1, 3))
    assert list(watch_job(cast("Carrier", Job(others)), (), None, number=3)) == [
        others.without_refusal()
    ]
    with pytest.raises(SealingError) as caught:
        list(watch_job(cast("Carrier", Job(others)), (), None, number=2))
    assert caught.value.code is ErrorCode.GRANTS_DIFFER
    report = others.model_copy(update={"result_bytes": 7})
    assert list(watch_job(cast("Carrier", Job(report)), (), None, number=2)) == [report]
