"""The end of a job: seal the result, destroy plaintext and keys, offer the result until it is acknowledged.

    seal → end record → destroy → end record → offer

The end record lies in the ciphertext directory beside the sealed result. A later start of the same job finds it
and only offers the result: what was finished is not trained again, and what failed for good does not fail again.
The first one says that nothing is destroyed yet: a start that finds it destroys before it offers.

The report on a dataset that is refused while there are tries left is offered beside the wait for another one. That
leaves no end record: the job has not ended.

The front, which may have been taken over, can write to that directory: no file there is changed, or read again, by
its name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

from trainer import logs
from trainer.atomic_files import SHARED_MODE, open_regular_file, replace_atomically
from trainer.encoding import sha256_hex, stream_sha256
from trainer.errors import ErrorCode, ExitCode, JobError, TrainerError, UnavailableError
from trainer.ipc.front_messages import DeletionReady, ResultReady
from trainer.job.ciphertext import CiphertextDirectory
from trainer.job.destruction import attest_deletion, destroy_plaintext, destroy_try
from trainer.job.end_record import EndRecord, EndRecordFile
from trainer.job.front_process import FrontProcess
from trainer.job.outcome import RELEASED_ON_FAILURE, gather_result, with_checked_output
from trainer.job.result_statements import JobOutcome, ReceiptSigner
from trainer.job.termination import Termination
from trainer.job.workspace import Workspace
from trainer.models import Phase
from trainer.sealing.age import parse_recipient
from trainer.sealing.grant_secrets import acknowledgement
from trainer.sealing.pool import ReceivedDataset
from trainer.sealing.sealed_result import SealedResult, seal_result

RESUMABLE_LINGER_SECONDS: Final = 30
"""How long a failure report is offered if another start goes on: SIGKILL follows the operator's SIGTERM soon, and
every second is one in which nothing is trained."""

MIN_OFFER_SECONDS: Final = 600
"""How long each start offers a result at least, if `linger_seconds` is not less."""

_STORAGE_RETRY_SECONDS: Final = 10.0


class PhaseChange(Protocol):
    """Publishes that the job entered another phase."""

    def __call__(
        self,
        phase: Phase,
        *,
        error: ErrorCode | None = None,
        result_bytes: int | None = None,
        received: tuple[int, ...] = (),
        withdrawn: tuple[int, ...] = (),
        retained: tuple[int, ...] = (),
    ) -> None:
        """Publishes `phase`, with a public error code and the size of the sealed result in bytes.

        The others are numbers of providers of a joint job: `received` of those whose datasets are in, `withdrawn`
        of those who have taken theirs back, `retained` of those whose datasets wait to be granted again.
        """


@dataclass(frozen=True)
class HandOver:
    """Hands the outcome of a job over to the provider.

    Args:
        front: serves the result.
        signer: signs receipt and deletion statement.
        workspace: holds the plaintext that is sealed and destroyed.
        ciphertext: receives the sealed result.
        record_file: the end record.
        linger_seconds: how long the result is offered, over all starts; each start offers it for a while.
        enter: publishes a phase.
        public: publishes an event.
        termination: whether the operator asked the job to end.
        sleep: waits for seconds.
    """

    front: FrontProcess
    signer: ReceiptSigner
    workspace: Workspace
    ciphertext: CiphertextDirectory
    record_file: EndRecordFile
    linger_seconds: int
    enter: PhaseChange
    public: Callable[[logs.PublicEvent], None]
    termination: Termination
    sleep: Callable[[float], None] = time.sleep

    def seal(self, bundle: ReceivedDataset, outcome: JobOutcome) -> EndRecord:
        """Seals the outcome, destroys plaintext and dataset keys, and records the end.

        Raises:
            UnavailableError: STORAGE_FULL: the ciphertext directory had no room within `linger_seconds`.
            JobError: plaintext could not be removed, or the front ended.
        """
        outcome = with_checked_output(outcome, self.workspace, self.signer.spec)
        failure = outcome.failure
        self.enter(Phase.SEALING)
        if failure is not None:
            self.workspace.make_room(keep_output=failure.code in RELEASED_ON_FAILURE)
        # A signal now must not lose a finished result.
        with self.termination.redirected_to(lambda: None):
            record = self._seal(bundle, outcome)
            # From here on a start that is killed leaves a finished job.
            self._save(record)
            record = self.destroy(record)
        self.public(logs.ResultSealed(record.result_bytes))
        return record

    def refuse(self, bundle: ReceivedDataset, outcome: JobOutcome) -> EndRecord:
        """Seals the report on a refused dataset, destroys what the dataset left, and offers the report.

        The dataset keys are still needed: there is no deletion statement before the job's end.

        Raises:
            UnavailableError: STORAGE_FULL: the ciphertext directory had no room within `linger_seconds`.
            JobError: plaintext could not be removed, or the front ended.
        """
        self.enter(Phase.SEALING)
        report = self._seal(bundle, outcome)
        destroy_try(self.workspace)
        self._offer_sealed(report, final=False)
        self.public(logs.ResultSealed(report.result_bytes))
        return report

    def give_up(self, report: EndRecord) -> EndRecord:
        """Ends a job that got no other dataset in time; returns what it offers: its last report on a refused one.

        Raises:
            JobError: plaintext could not be removed.
        """
        update = {
            "error": ErrorCode.DATASET_TIMEOUT,
            "acknowledged": self.front.has_acknowledgement,
        }
        return self.destroy(report.model_copy(update=update))

    def _seal(self, bundle: ReceivedDataset, outcome: JobOutcome) -> EndRecord:
        """Seals the outcome to those it is for; returns its record."""
        tree = gather_result(self.signer, bundle, outcome, self.workspace)
        addressees = outcome.addressees(bundle)
        recipients = [parse_recipient(text) for text in addressees.recipients]
        sealed = self._store(lambda: seal_result(tree, self.ciphertext.result, recipients))
        shown = (acknowledgement(grant.secret, sealed.sha256) for grant in addressees.grants)
        return EndRecord(
            error=None if outcome.failure is None else outcome.failure.code,
            result_sha256=sealed.sha256,
            result_bytes=sealed.size,
            dataset_manifest_sha256=bundle.manifest.sha256(),
            destroyed={},
            privacy=outcome.privacy,
            ended_at=int(time.time()),
            acknowledgement_sha256=tuple(sha256_hex(value.encode()) for value in shown),
        )

    def _offer_sealed(self, record: EndRecord, *, final: bool) -> None:
        self.front.offer_result(
            ResultReady(
                size=record.result_bytes,
                sha256=record.result_sha256,
                acknowledgement_sha256=record.acknowledgement_sha256,
                final=final,
            )
        )

    def destroy(self, record: EndRecord) -> EndRecord:
        """Destroys plaintext and dataset keys; returns the record that says so.

        Before the offer, not after it: the plaintext does not wait for the provider to pull.

        Raises:
            JobError: plaintext could not be removed.
        """
        destroyed = destroy_plaintext(self.signer.keys, self.workspace)
        record = record.model_copy(update={"destroyed": destroyed})
        self._save(record)
        return record

    def is_still_offered(self, record: EndRecord) -> bool:
        """Returns whether another start of the job only offers what an earlier one sealed.

        A failure that is over is not offered: this start accepts another dataset.
        """
        if not record.is_final or record.is_over:
            return False
        # The operator stores both files; a result that is not the recorded one is not offered.
        with suppress(OSError), open_regular_file(self.ciphertext.result) as result:
            return stream_sha256(result) == record.result_sha256
        return False

    def offer(self, record: EndRecord) -> ExitCode:
        """Offers the sealed result until it is acknowledged, or until its time is over.

        Raises:
            JobError: the front ended, the operator asked the job to end, or nothing was destroyed yet.
        """
        if not record.destroyed:
            raise JobError(
                ErrorCode.JOB_FAILED,
                "a result must not be offered before its plaintext is destroyed",
            )
        self._publish_deletion(record)
        self._offer_sealed(record, final=True)
        if record.error is None:
            self.enter(Phase.AWAITING_PULL, result_bytes=record.result_bytes)
        else:
            self.enter(Phase.FAILED, error=record.error, result_bytes=record.result_bytes)
            self.public(logs.JobFailed(record.error))
        if not record.acknowledged:
            self._wait_acknowledged(record)
        if record.error is not None:
            return ExitCode.JOB
        self.enter(Phase.DONE)
        return ExitCode.DONE

    def _wait_acknowledged(self, record: EndRecord) -> None:
        """Waits for the acknowledgement, and records whether it came or the time of the offer is over."""
        linger, acknowledged = self.linger_seconds, False
        if self.termination.signalled or not record.is_final:
            linger = min(linger, RESUMABLE_LINGER_SECONDS)
        # What is left of it, at least a while: the operator sets the clock, and an outage may last longer than the
        # offer; neither takes a finished result from its provider. A clock that was set back makes it no longer.
        left = record.ended_at + linger - int(time.time())
        seconds = float(min(linger, max(MIN_OFFER_SECONDS, left)))
        # An end that had no room beside its result is recorded as soon as there is some.
        while not acknowledged and seconds > 0 and self.record_file.load() != record:
            acknowledged = self.front.wait_acknowledged(min(seconds, _STORAGE_RETRY_SECONDS))
            seconds = max(0.0, seconds - _STORAGE_RETRY_SECONDS)
            self._save(record)
        acknowledged = acknowledged or self.front.wait_acknowledged(seconds)
        # An offer that the operator cut short was not one in vain.
        expired = not acknowledged and not self.termination.signalled
        record = record.model_copy(update={"acknowledged": acknowledged, "expired": expired})
        self._save(record)
        if acknowledged:
            self._publish_deletion(record)

    def _save(self, record: EndRecord) -> None:
        """Records the end, if there is room: a finished result is offered all the same."""
        with _logging_errors("the end of the job was not recorded"):
            self.record_file.save(record)

    def _publish_deletion(self, record: EndRecord) -> None:
        """Makes the statement of what was destroyed, puts it beside the result, and has the front give it out.

        Without a quote there is none: a statement that nobody can verify would be refused.
        """
        statement = None
        with _logging_errors("there is no deletion statement"):
            statement = attest_deletion(self.signer, record)
        if statement is None:
            return
        with (
            _logging_errors("the deletion statement was not written"),
            replace_atomically(self.ciphertext.deletion, SHARED_MODE) as file,
        ):
            file.write(statement)
        self.front.send(
            DeletionReady(statement=statement.decode(), acknowledged=record.acknowledged)
        )

    def _store(self, write: Callable[[], SealedResult]) -> SealedResult:
        """Calls `write` until the ciphertext directory has room for what it writes; returns its result.

        The operator can make room, and nothing trained is lost until then.

        Raises:
            UnavailableError: STORAGE_FULL, after `linger_seconds`.
        """
        deadline = time.monotonic() + self.linger_seconds
        while True:
            try:
                return write()
            except UnavailableError as error:
                if error.code is not ErrorCode.STORAGE_FULL or time.monotonic() >= deadline:
                    raise
                self.enter(Phase.SEALING, error=ErrorCode.STORAGE_FULL)
                self.sleep(_STORAGE_RETRY_SECONDS)


@contextmanager
def _logging_errors(message: str) -> Iterator[None]:
    """Logs what could not be made or written: a finished result is offered all the same."""
    try:
        yield
    except (TrainerError, OSError) as error:
        logs.log_error(message, error)
