"""Granting a sealed dataset again to a job that was restarted, in place of sending it again.

    verify the restarted job → wrap the file key to its recipient → send a few kilobytes

A job that kept the dataset waits in `awaiting-grant`. If it refuses the re-grant several times, or the file that
it kept is broken, the dataset is sealed anew and sent.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trainer.attestation.result.attestation_result import AttestationResult
from trainer.attestation.result.record import Record
from trainer.errors import DATASET_FAULTS, ErrorCode, SealingError, UnavailableError, UsageError
from trainer.models import Phase, Status
from trainer.provider.grants import (
    GRANT_SECONDS,
    GrantRecord,
    parse_grant_record,
    read_grant_record,
)
from trainer.provider.job_events import RegrantRefusedError, refused
from trainer.provider.own_files import LocalSecret, OwnDirectory
from trainer.provider.submission_directory import SubmissionDirectory
from trainer.provider.submission_request import ProgressReporter, Submission
from trainer.provider.transport.carrier import FINAL_PHASES, PHASES_BEFORE_UPLOAD, Carrier
from trainer.provider_keys import ProviderKey
from trainer.sealing.age import Identity
from trainer.sealing.regrant import make_regrant

_MAX_REFUSALS: Final = 3
"""Refusals before the dataset is sent again: a stranger's re-grant may have been refused at the same time."""

_VERDICT_SECONDS: Final = 60.0


def send_regrant(
    client: Carrier,
    grant: GrantRecord,
    result: AttestationResult,
    identities: Sequence[Identity],
    key: ProviderKey | None,
) -> int:
    """Grants a sealed dataset again to an appraised job; returns the number of bytes sent.

    Args:
        client: carrier of the job, pinned to the TLS key that the appraised claims name.
        grant: what the provider keeps of the sealed dataset.
        result: the appraisal of the restarted job; a fresh pass.
        identities: the provider's; one of them opens the header in `grant`.
        key: the provider's, which signs the re-grant; None leaves it unsigned.

    Raises:
        VerificationError: the appraisal is not a fresh pass, or has expired.
        SealingError: the grant is for another job spec, or `identities` do not open its header.
        UnavailableError: WRONG_PHASE: the job waits for no re-grant; or it cannot be reached.
    """
    now = int(time.time())
    document = make_regrant(
        grant.header.encode(),
        identities,
        grant.grant,
        grant.manifest_sha256,
        result,
        now=now,
        expires_at=now + GRANT_SECONDS,
        key=key,
    ).canonical()
    client.regrant(document)
    return len(document)


def wait_regranted(client: Carrier, grant: GrantRecord, pause: float = 0.2) -> Status:
    """Waits until a job has the dataset that was granted again; returns its status then.

    Raises:
        SealingError: it refused the re-grant, or the dataset that it kept does not open.
        UnavailableError: it did nothing for a minute, or cannot be reached.
    """
    deadline = time.monotonic() + _VERDICT_SECONDS
    while time.monotonic() < deadline:
        status = client.status()
        is_waiting = status.phase in {Phase.AWAITING_GRANT, Phase.AWAITING_DATASET}
        if grant.is_in(status):
            return status
        if is_waiting and status.error is not None:
            raise refused(status)
        if not is_waiting and status.phase not in {Phase.OPENING, *FINAL_PHASES}:
            return status
        time.sleep(pause)
    raise UnavailableError(ErrorCode.TIMEOUT, "the job has not gone on since the re-grant")


def find_grant_record(path: Path, secret: LocalSecret) -> GrantRecord:
    """Returns the grant record of a sealed dataset.

    Args:
        path: the file that `trainer seal` wrote; or OUTPUT of `trainer submit`, or its `OUTPUT.submission`.
        secret: authenticates the documents of a submission.

    Raises:
        UsageError: there is none.
        VerificationError: the submission's document was not written here.
    """
    if path.is_file():
        return read_grant_record(path)
    folder = path if path.suffix == ".submission" else path.with_name(path.name + ".submission")
    own = OwnDirectory(folder, secret)
    if not (folder / "grant.json").exists():
        raise UsageError(
            ErrorCode.FILE_NOT_FOUND,
            f"no grant record at {path}",
            expected="OUTPUT of a submission that is under way, or the .grant.json that `trainer seal` wrote",
            found="neither",
        )
    own.require_own()
    return parse_grant_record(own.read("grant.json"), f"{folder}/grant.json")


@dataclass
class Regranting:
    """What a submission does with the sealed dataset after its job was restarted.

    Args:
        submission: the submission.
        directory: what it has written.
        report: receives a line for each re-grant.

    Attributes:
        is_restarted: the job has to be verified again before anything is sent.
    """

    submission: Submission
    directory: SubmissionDirectory
    report: ProgressReporter
    is_restarted: bool = field(default=False, init=False)
    _restarted: Record | None = field(default=None, init=False)
    _refusals: int = field(default=0, init=False)
    _is_sent: bool = field(default=False, init=False)
    _last_phase: Phase | None = field(default=None, init=False)

    def adopt(self, record: Record, status: Status) -> None:
        """Replaces the job by its appraised restart, and decides whether the sealed dataset is still of use.

        Raises:
            UnavailableError: JOB_BUSY: the job does not know yet what it kept.
        """
        if status.phase is Phase.STARTING:
            # It has evidence before it prepares: it is about to offer what it sealed before the restart.
            raise UnavailableError(ErrorCode.JOB_BUSY, "the job is about to offer its result")
        grant = self.directory.load_grant() if self.directory.upload_begun.exists() else None
        if grant is not None and status.phase in {Phase.PREPARING, Phase.OPENING}:
            raise UnavailableError(ErrorCode.JOB_BUSY, "the job looks for what it kept")
        has_result = (
            status.phase in {Phase.AWAITING_PULL, *FINAL_PHASES} and status.result_bytes is not None
        )
        has_dataset = grant is not None and (
            status.phase in {Phase.TRAINING, Phase.SEALING}
            or grant.needs_regrant(status)
            or grant.is_in(status)
        )
        self.directory.adopt_restarted_job(record, keeps_dataset=has_result or has_dataset)
        self._restarted, self.is_restarted = record, False

    def has_dataset(self, client: Carrier, grant: GrantRecord) -> bool:
        """Returns whether the job has the sealed dataset.

        It has if it took the upload, which an earlier call may not have seen; or if it kept the dataset over a
        restart, and is granted it again.

        Raises:
            UnavailableError: JOB_BUSY: the job has to be verified first, waits no longer, or opens a dataset.
        """
        status, has_begun = client.status(), self.directory.upload_begun.exists()
        is_uploaded = self.directory.uploaded.exists()
        # An upload that can be continued is one to this start, which did not have the dataset.
        is_uploading = self.directory.upload_state.exists() and not is_uploaded
        if has_begun and grant.needs_regrant(status) and not is_uploading:
            # Until the re-grant is sent: only a job that was verified just now gets one.
            self.is_restarted = True
            self._send(client, grant)
            self.is_restarted = False
            return True
        if not is_uploaded and grant.number is not None and status.phase is Phase.OPENING:
            raise UnavailableError(
                ErrorCode.JOB_BUSY, "the job opens the dataset of one of its providers"
            )
        is_taken = grant.is_in(status) or status.phase not in PHASES_BEFORE_UPLOAD
        return is_uploaded or (has_begun and is_taken)

    def _send(self, client: Carrier, grant: GrantRecord) -> None:
        record, self._restarted = self._restarted, None
        if record is None:
            raise UnavailableError(ErrorCode.JOB_BUSY, "the job was started again")
        self.report.step("grant the dataset again")
        try:
            size = send_regrant(
                client, grant, record.result, self.submission.identities, self.submission.key
            )
        except UnavailableError as error:
            if error.code is ErrorCode.WRONG_PHASE:
                error.code = ErrorCode.JOB_BUSY
            raise
        self._is_sent, self._last_phase = True, None
        self.report.line(f"  {size} bytes sent in place of the dataset")

    def require_same_start(self, status: Status, grant: GrantRecord) -> None:
        """Notes a status of the watched job. Files show no TLS key, so its phases tell that it was restarted.

        Raises:
            UnavailableError: JOB_BUSY: it waits for the grant after it was in another phase.
        """
        last, self._last_phase = self._last_phase, status.phase
        # A refused re-grant is no restart; nor is, in a joint job, another's dataset that is opened meanwhile.
        same = {None, Phase.AWAITING_GRANT} | ({Phase.OPENING} if grant.number else set())
        if grant.needs_regrant(status) and status.error is None and last not in same:
            self.is_restarted = True
            raise UnavailableError(ErrorCode.JOB_BUSY, "the job was started again")

    def judge_refusal(self, error: SealingError) -> None:
        """Returns if a refusal of the job is not about a re-grant; otherwise the submission goes on.

        Raises:
            UnavailableError: JOB_BUSY: the steps are repeated: another re-grant, or the dataset sealed anew.
        """
        if not self._is_sent or error.code in DATASET_FAULTS:
            return
        self._is_sent = False
        self._refusals += 1
        self.directory.uploaded.unlink(missing_ok=True)
        is_given_up = not isinstance(error, RegrantRefusedError) or self._refusals >= _MAX_REFUSALS
        if is_given_up and (restarted := self.directory.load_restarted()) is not None:
            self.directory.seal_anew(restarted)
        raise UnavailableError(
            ErrorCode.JOB_BUSY, f"the job refused the re-grant ({error.code.value})"
        ) from error
