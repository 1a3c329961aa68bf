"""watch and ack: what a job tells while it runs, and its last word."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from trainer.attestation.result.record import Record
from trainer.encoding import parse_json
from trainer.errors import ErrorCode, JobError, SealingError, TrainerError
from trainer.models import Phase, Status
from trainer.provider.transport.carrier import Carrier, SealedEvent
from trainer.receipt.deletion import DeletionStatement, ExpectedDeletion, verify_deletion
from trainer.sealing.age import Identity, decrypt


@dataclass(frozen=True)
class PrivateMetrics:
    """Metrics of one step, opened with the provider's identity."""

    values: Mapping[str, JsonValue]


def watch(client: Carrier, identities: Sequence[Identity], token: str | None) -> Iterator[Status | PrivateMetrics]:
    """Follow a job until its result can be pulled (or it failed): public status, and what is for us alone.

    Raises:
        UnavailableError: the job cannot be reached any more.
        SealingError: it refused the dataset.
        JobError: it failed before it knew whom to tell why.
    """
    for event in client.events(token):
        if isinstance(event, Status):
            yield event
            _raise_if_over(event)
            if event.phase in {Phase.AWAITING_PULL, Phase.DONE, Phase.FAILED}:
                return
        elif (metrics := _open_event(event, identities)) is not None:
            yield metrics


def _raise_if_over(status: Status) -> None:
    if status.phase is Phase.FAILED and status.result_bytes is None:
        raise JobError(ErrorCode(status.error or ErrorCode.JOB_FAILED), "the job failed and left no report")
    if status.phase is Phase.AWAITING_DATASET and status.error is not None:
        raise SealingError(
            ErrorCode(status.error),
            "the job could not open the dataset",
            hint="verify again and seal anew: the job may have been restarted with other keys",
        )


def _open_event(event: SealedEvent, identities: Sequence[Identity]) -> PrivateMetrics | None:
    """Open one private event; None for what is not ours to read or not JSON: it is advice, never a decision."""
    opened = io.BytesIO()
    try:
        decrypt(io.BytesIO(base64.b64decode(event.sealed)), opened, identities)
        values = parse_json(opened.getvalue())
    except (TrainerError, ValueError):
        return None
    return PrivateMetrics(values) if isinstance(values, dict) else None


def check_deletion_of(
    envelope: bytes, record: Record, *, result_sha256: str | None = None, manifest_sha256: str | None = None
) -> DeletionStatement:
    """Check what an appraised job signed at its end: see `verify_deletion`.

    Raises:
        VerificationError: it does not hold.
    """
    awaited = ExpectedDeletion(
        receipt_key=record.result.receipt_key,
        job_spec_sha256=record.result.job_spec_sha256,
        received_at=int(time.time()),
        result_sha256=result_sha256,
        manifest_sha256=manifest_sha256,
    )
    return verify_deletion(envelope, awaited)
