"""The watch step: follow a job's public status, and open the private metrics that are meant for the provider."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from trainer.durations import describe_duration
from trainer.encoding import parse_json
from trainer.errors import DATASET_FAULTS, ErrorCode, ExitCode, JobError, SealingError, TrainerError
from trainer.models import Phase, Status
from trainer.provider.submission_request import ProgressReporter
from trainer.provider.transport.carrier import FINAL_PHASES, Carrier, SealedEvent
from trainer.sealing.age import Identity, decrypt

NOT_ITS_DATASET: Final = frozenset({ErrorCode.NO_IDENTITY_MATCH, ErrorCode.UNAUTHORIZED})
"""What a job says of a dataset that is sealed to an earlier start of it. Files show no TLS key that changed."""

_MAX_SHOWN_NUMBER: Final = 10**15
_SUMMARY_METRICS: Final = (
    "step",
    "loss",
    "eval_loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
)


class RefusedBeforeError(SealingError):
    """The job refused this sealed dataset for its rows before; the report is replaced by that on another one."""

    exit_code = ExitCode.JOB


class RegrantRefusedError(SealingError):
    """The job refused a re-grant, and still waits for one."""


@dataclass(frozen=True)
class PrivateMetrics:
    """Metrics of one optimizer step, opened with the provider's identity."""

    values: Mapping[str, JsonValue]

    def shown(self) -> dict[str, str]:
        """Returns the best-known metrics in words: name → value, such as `loss` → `1.234`.

        Only numbers: whoever knows the provider's recipient can seal an event with texts of any length to it.
        """
        found = {name: self.values.get(name) for name in _SUMMARY_METRICS}
        return {
            name.replace("_", " "): f"{value:.4g}" if isinstance(value, float) else str(value)
            for name, value in found.items()
            if isinstance(value, float) or (type(value) is int and abs(value) < _MAX_SHOWN_NUMBER)
        }


def watch_job(
    client: Carrier, identities: Sequence[Identity], token: str | None, *, number: int | None = None
) -> Iterator[Status | PrivateMetrics]:
    """Yields a job's status and private metrics until its result, or the report on a failure, can be pulled.

    Args:
        client: carrier of the job.
        identities: the provider's; private events are sealed to them.
        token: the grant's token for events; None leaves private events out.
        number: that of the provider in a joint job; None in a job of one provider.

    Raises:
        UnavailableError: the job cannot be reached any more.
        SealingError: the job could not open the dataset, or refused it before (`RefusedBeforeError`), or refused a
            re-grant (`RegrantRefusedError`).
        JobError: the job failed and has no sealed report, because it never learned a recipient for one.
    """
    was_in = False
    for event in client.events(token):
        if isinstance(event, SealedEvent):
            yield from _open_event(event, identities)
            continue
        # Its dataset is in: what the status says of uploads is about those of others.
        if number in event.received:
            was_in = True
            yield event.without_refusal()
            continue
        # Else it is about an earlier dataset of this provider.
        if was_in and number in event.withdrawn:
            raise SealingError(
                ErrorCode.GRANT_WITHDRAWN,
                "the dataset was taken back",
                hint="repeat the command to take part with a new grant",
            )
        yield event
        if event.phase is Phase.FAILED and event.result_bytes is None:
            raise JobError(_known_code(event.error), "the job failed and left no report")
        if event.announces_refusal:
            return
        # A job that cannot open a dataset does not fail: it waits for another one, with the error in its status.
        if (
            event.phase in {Phase.AWAITING_DATASET, Phase.AWAITING_GRANT}
            and event.error is not None
        ):
            raise refused(event)
        if event.phase is Phase.AWAITING_PULL or event.phase in FINAL_PHASES:
            return


def describe_training(status: Status) -> str:
    """Returns in one line what a job in the phase `training` does, how far it is, and how long it will take."""
    left = (
        f", {describe_duration(status.eta_seconds)} left" if status.eta_seconds is not None else ""
    )
    if status.activity is not None:
        percent = f" {status.percent} %" if status.percent is not None else ""
        return f"{status.activity.value}{percent}{left}"
    return f"step {status.step} of {status.total_steps}{left}" if status.total_steps else ""


class EventDisplay:
    """Shows a person what a job's events say.

    Args:
        report: shows it.
    """

    def __init__(self, report: ProgressReporter) -> None:
        self._report = report
        self._shown: tuple[Phase, str | None] | None = None

    def show(self, event: Status | PrivateMetrics) -> None:
        """Shows an event: a new phase or error, how far the training is, or metrics."""
        if isinstance(event, PrivateMetrics):
            self._report.metrics(event.shown())
            return
        if (event.phase, event.error) != self._shown:
            self._shown = event.phase, event.error
            self._report.phase(event.phase.value + (f" ({event.error})" if event.error else ""))
        if event.phase is Phase.TRAINING and (event.activity is not None or event.total_steps):
            self._report.training(event)


def _open_event(event: SealedEvent, identities: Sequence[Identity]) -> list[PrivateMetrics]:
    """Returns the metrics of a private event; none if it does not open or is not a list of JSON objects.

    Events are only shown. Nothing is decided on them, so one that does not open is skipped.
    """
    opened = io.BytesIO()
    try:
        decrypt(io.BytesIO(base64.b64decode(event.sealed)), opened, identities)
        values = parse_json(opened.getvalue())
    except (TrainerError, ValueError):
        return []
    entries = values if isinstance(values, list) else []
    return [PrivateMetrics(entry) for entry in entries if isinstance(entry, dict)]


def refused(status: Status) -> SealingError:
    """Returns the error for a dataset, or a re-grant, that the job refused without a report."""
    code = _known_code(status.error)
    if status.phase is Phase.AWAITING_GRANT:
        message = "the job did not accept the re-grant"
        return RegrantRefusedError(
            code, message, hint="verify the job again, or seal and upload the dataset anew"
        )
    if code in DATASET_FAULTS:
        message = "the job refused this sealed dataset before"
        return RefusedBeforeError(code, message, hint="mend the dataset, and seal it anew")
    return SealingError(
        code,
        "the job could not open the dataset",
        hint="verify the job again and seal the dataset anew: a restarted job may have other keys",
    )


def _known_code(code: str | None) -> ErrorCode:
    """Returns the public code in a status; `job-failed` for one that this version does not know."""
    try:
        return ErrorCode(code or "")
    except ValueError:
        return ErrorCode.JOB_FAILED
