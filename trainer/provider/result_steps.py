"""The last steps of `trainer submit`: pull, open, acknowledge."""

from __future__ import annotations

from trainer.attestation.result.record import Record
from trainer.errors import SealingError, UnavailableError, UsageError, VerificationError
from trainer.provider.acknowledgement import STATEMENT_ERRORS, DeletionReceiver
from trainer.provider.grants import GrantRecord
from trainer.provider.local_files import write_beside
from trainer.provider.opening import open_sealed_result
from trainer.provider.result_check import OpenedResult
from trainer.provider.result_paths import deletion_path
from trainer.provider.submission_directory import SubmissionDirectory
from trainer.provider.submission_request import ProgressReporter, Submission
from trainer.provider.transport.carrier import Carrier, require_result_size
from trainer.receipt.deletion import DeletionStatement


class ResultSteps:
    """Brings the result of a submission home.

    Attributes:
        is_refused: whether the pulled result is the report on a refused dataset, after which the job goes on.
    """

    def __init__(
        self, submission: Submission, directory: SubmissionDirectory, report: ProgressReporter
    ) -> None:
        self._submission = submission
        self._directory = directory
        self._report = report
        self.is_refused = False

    def pull(self, client: Carrier, record: Record, grant: GrantRecord) -> DeletionReceiver:
        """Pulls the sealed result, and with it the statement of what the job destroyed: it may be gone soon."""
        self._report.step("pull the sealed result")
        limit = self._submission.max_result_bytes
        status = client.status()
        size, self.is_refused = require_result_size(status, limit), status.announces_refusal
        sealed_sha256 = client.download_result(
            self._directory.sealed_result,
            limit=limit,
            progress=lambda done: self._report.bytes_done("pulling", done, size),
        )
        receiver = self._directory.deletion_receiver(client, record, grant, sealed_sha256)
        try:
            if not self.is_refused:  # a job that goes on needs its keys: it states nothing yet
                receiver.fetch()
        except (UnavailableError, VerificationError) as error:
            self._report.line(f"no valid statement of what the job destroyed: {error.message}")
        return receiver

    def open(self, record: Record, grant: GrantRecord, sealed_sha256: str) -> OpenedResult:
        """Opens the result; a failure report goes to `OUTPUT.failure-N`, so that OUTPUT stays free.

        Raises:
            UsageError: OUTPUT was created since the submission began; the sealed result stays.
            SealingError | VerificationError: the result does not open, or fails a check: it is set aside.
        """
        self._report.step("open and check the result")
        try:
            opened = open_sealed_result(
                self._directory.sealed_result,
                self._submission.identities,
                self._directory.make_room_to_open(),
                record=record,
                grant=grant,
                restarted=self._directory.load_restarted(),
            )
        except (SealingError, VerificationError):
            # Whoever stores the result chose these bytes: they must not replace the real ones.
            self._directory.refuse_result()
            raise
        placed = self._directory.place_opened(opened, self._submission.output, sealed_sha256)
        if (failure := placed.failure) is not None:
            self._report.line(
                f"  the job failed ({failure.code.value}); its report is in {placed.folder}"
            )
        return placed

    def acknowledge(
        self, receiver: DeletionReceiver, grant: GrantRecord, result: OpenedResult
    ) -> DeletionStatement | None:
        """Ends the job; keeps the verified statement of what it destroyed beside the result.

        The acknowledgement comes last: after it the job offers the result no longer, so it must have opened here.
        """
        kept = self._directory.deletion
        statement = None
        if grant.pool is not None:
            receiver = receiver.about(result.statement)
        try:
            statement = receiver.acknowledge(grant)
        except (UnavailableError, UsageError, VerificationError) as error:
            # The result is here and was checked; the job ends by itself, later. Others can answer in a spool.
            is_answer = error.code in STATEMENT_ERRORS
            reason = (
                "no valid answer to the acknowledgement"
                if is_answer
                else "the result was not acknowledged"
            )
            self._report.line(f"{reason}: {error.message}")
        if statement is None and kept.exists():
            statement = receiver.verify(kept.read_bytes())  # the one from beside the result
        if statement is None and not self.is_refused:
            self._report.line("the job gave no statement of what it destroyed")
        elif statement is not None:
            write_beside(deletion_path(result.folder), kept.read_bytes())
            result.write_record(deletion=kept.read_bytes())
        return statement
