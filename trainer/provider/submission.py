"""`trainer submit`: all of the provider's steps in one command, resumable at each of them.

    verify → seal → upload → watch → pull → open → acknowledge

What a step produced is kept in `SubmissionDirectory` until the result of a job that succeeded is in place. The
same call again continues after the last finished step. A job that does not answer, or was interrupted, is waited
for; one that was restarted is verified again before anything is sent. A failure report is opened beside OUTPUT.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from trainer.attestation.result.presentation import DEVELOPMENT_BANNER
from trainer.attestation.result.record import Record
from trainer.encoding import file_sha256
from trainer.errors import (
    RESUMABLE,
    ErrorCode,
    SealingError,
    UnavailableError,
    VerificationError,
)
from trainer.models import Status
from trainer.provider.attested_spec import attested_job_spec
from trainer.provider.authorization import make_authorizer
from trainer.provider.dataset_files import find_data_files
from trainer.provider.grants import GrantRecord, seal_dataset
from trainer.provider.job_events import NOT_ITS_DATASET, EventDisplay, watch_job
from trainer.provider.job_wait import JobWait
from trainer.provider.local_files import require_absent
from trainer.provider.policies import read_policy
from trainer.provider.regranting import Regranting
from trainer.provider.result_paths import result_paths
from trainer.provider.result_steps import ResultSteps
from trainer.provider.submission_directory import SubmissionDirectory
from trainer.provider.submission_request import (
    ProgressReporter,
    Submission,
    SubmissionResult,
    submission_identity,
)
from trainer.provider.transport.carrier import FINAL_PHASES, Carrier
from trainer.provider.transport.carrier_registry import connect_to_job
from trainer.provider.verification import appraise_job

StepResult = TypeVar("StepResult")

_ANSWER_SECONDS: Final = 10.0
"""How long the answer of a job by files may take, however short the wait: none is there at once."""

_NO_ANSWER: Final = frozenset(
    {ErrorCode.JOB_UNREACHABLE, ErrorCode.STORE_UNAVAILABLE, ErrorCode.JOB_BUSY, ErrorCode.TIMEOUT}
)


def run_submission(submission: Submission, report: ProgressReporter) -> SubmissionResult:
    """Runs all steps, or those that an earlier call with the same arguments did not finish.

    Raises:
        UsageError: the output directory exists, or another submission to it is under way.
        TrainerError: a step failed; what earlier steps produced is kept for the next call.
    """
    return _SubmissionRun(submission, report).run()


class _SubmissionRun:
    """One run of the steps."""

    def __init__(self, submission: Submission, report: ProgressReporter) -> None:
        output = submission.output
        self._submission = submission
        self._report = report
        self._seconds: dict[str, float] = {}
        self._has_answered = False
        self._job_wait = JobWait(submission.wait_seconds, report)
        self._policy = read_policy(submission.policy)
        folder = output.with_name(output.name + ".submission")
        self._directory = SubmissionDirectory(folder, submission.secret, self._policy)
        # Else an earlier call may have put its result in place.
        if not self._directory.sealed_result.exists():
            for path in result_paths(output):
                require_absent(path)
        self._regranting = Regranting(submission, self._directory, report)
        self._files = find_data_files(submission.data, submission.adapter)
        self._result_steps = ResultSteps(submission, self._directory, report)

    def run(self) -> SubmissionResult:
        """Runs the steps, again and again with a job that was restarted or interrupted, within `wait_seconds`."""
        description = submission_identity(
            self._submission, self._policy, self._files, self._submission.recipients
        )
        if self._directory.open_for(description):
            self._report.line(f"going on with the submission in {self._directory.path}")
        while True:
            try:
                if self._regranting.is_restarted:
                    self._report.step("verify the job again: it was restarted")
                    self._adopt_restarted_job()
                if (result := self._run_steps()) is not None:
                    return result
                hint = "once its operator has started it again, repeat this command"
                error = UnavailableError(
                    ErrorCode.JOB_UNREACHABLE, "the job was interrupted", hint=hint
                )
                self._job_wait.wait_after(error)
            except VerificationError as error:
                # A restarted job has a new TLS key. Once the result is here, the job is no longer needed.
                if (
                    error.code is not ErrorCode.TLS_KEY_MISMATCH
                    or self._directory.sealed_result.exists()
                ):
                    raise
                # Whoever is between here and the job can answer with another key each time, without end.
                self._job_wait.wait_after(error)
                self._regranting.is_restarted = True
            except UnavailableError as error:
                # A job that never answered may not exist; one that ended while it was preparing does.
                self._has_answered |= error.code is ErrorCode.JOB_BUSY
                if error.code not in _NO_ANSWER or not (
                    self._has_answered or self._directory.has_record()
                ):
                    raise
                self._job_wait.wait_after(error)

    def _adopt_restarted_job(self) -> None:
        record = self._appraise()
        pinned = self._connect(record.result.peer_spki_sha256)
        self._regranting.adopt(record, pinned.status())

    def _run_steps(self) -> SubmissionResult | None:
        """Returns the end of the submission; None if the job was interrupted and can go on."""
        record = self._measure_time("verify", self._verify)
        grant = self._measure_time("seal", lambda: self._seal(record))
        # From here on only the key that the appraised claims name gets a byte.
        client = self._connect(self._directory.load_peer_key(record))
        sealed = self._directory.sealed_result
        ending = self._result_steps
        if sealed.exists():
            receiver = self._directory.deletion_receiver(client, record, grant, file_sha256(sealed))
        else:
            self._measure_time("upload", lambda: self._upload(client, record, grant))
            self._measure_time("watch", lambda: self._watch(client, grant))
            receiver = self._measure_time("pull", lambda: ending.pull(client, record, grant))
        result = self._measure_time(
            "open", lambda: ending.open(record, grant, receiver.result_sha256)
        )
        deletion = ending.acknowledge(receiver, grant, result)
        if ending.is_refused:
            self._report.line(
                "  the job waits for another dataset: mend this one, and repeat the command"
            )
        if result.failure is None:
            self._directory.remove()
        elif result.failure.code in RESUMABLE:
            # What the operator has to be asked for is in the report alone: nothing of it is public.
            self._report.line(f"  the job did not finish: {result.failure}")
            if result.failure.hint is not None:
                self._report.line(f"  hint: {result.failure.hint}")
            self._directory.forget_result()
            return None
        else:
            # The dataset or the job spec has to change. What was sealed stays for a job that is started anew.
            self._directory.mark_failed()
        return SubmissionResult(result, record.result, self._seconds, deletion)

    def _measure_time(self, name: str, step: Callable[[], StepResult]) -> StepResult:
        started = time.monotonic()
        try:
            return step()
        finally:
            self._seconds[name] = round(time.monotonic() - started, 3)

    def _verify(self) -> Record:
        if (record := self._directory.load_record(now=time.time())) is not None:
            return record
        self._report.step("verify the job")
        record = self._appraise()
        self._directory.save_record(record)
        return record

    def _appraise(self) -> Record:
        """Returns a fresh appraisal of the job.

        Raises:
            VerificationError: it is not a pass.
        """
        submission = self._submission
        job = self._connect(None)
        try:
            record = appraise_job(
                job, self._policy, cache=submission.cache, nonces=submission.nonces
            )
        finally:
            # After a TLS handshake there is a job, even if it ended before it had evidence.
            self._has_answered |= job.peer_spki_sha256 is not None
        record.result.require_pass(record.result.appraised_at)
        # Before anything is sent, so that whoever reads along can still stop it.
        if record.result.development_root:
            self._report.line(DEVELOPMENT_BANNER)
        for caution in record.result.cautions:
            self._report.line(f"CAUTION: {caution}")
        return record

    def _connect(self, peer_key: str | None) -> Carrier:
        return connect_to_job(
            self._submission.source,
            pinned_spki_sha256=peer_key,
            wait_seconds=max(_ANSWER_SECONDS, self._job_wait.remaining()),
        )

    def _seal(self, record: Record) -> GrantRecord:
        if (grant := self._directory.load_grant()) is not None:
            return grant
        self._report.step("check and seal the dataset")
        self._directory.discard_sealed_dataset()
        grant = seal_dataset(
            self._files,
            record.result,
            self._submission.recipients,
            self._directory.sealed_dataset,
            progress=lambda done, total: self._report.bytes_done("sealing", done, total),
            spec=attested_job_spec(record, self._submission.job),
            secret=self._directory.load_earlier_secret(),
            require=self._submission.require,
            key=self._submission.key,
            joint=self._submission.joint,
        )
        self._directory.save_grant(grant)
        return grant

    def _upload(self, client: Carrier, record: Record, grant: GrantRecord) -> None:
        directory = self._directory
        has_begun, is_joint = directory.upload_begun.exists(), grant.number is not None
        if (has_begun or is_joint) and self._regranting.has_dataset(client, grant):
            directory.uploaded.touch()
            return
        self._report.step("upload the sealed dataset")
        directory.begin_upload()
        size = directory.sealed_dataset.stat().st_size
        try:
            client.upload(
                directory.sealed_dataset,
                progress=lambda sent: self._report.bytes_done("uploading", sent, size),
                state=directory.upload_state,
                authorize=make_authorizer(self._submission.key, record.result),
            )
        except UnavailableError as error:
            if (has_begun or is_joint) and error.code is ErrorCode.WRONG_PHASE:
                # It opens what it kept, or another provider's; its phase was asked for a moment too early.
                error.code = ErrorCode.JOB_BUSY
            raise
        directory.uploaded.touch()

    def _watch(self, client: Carrier, grant: GrantRecord) -> None:
        self._report.step("wait for the training")
        display = EventDisplay(self._report)
        try:
            for event in watch_job(
                client, self._submission.identities, grant.events_token, number=grant.number
            ):
                if isinstance(event, Status):
                    self._regranting.require_same_start(event, grant)
                # An end may be that of the earlier start, which a spool shows until the job is started again.
                if isinstance(event, Status) and event.phase not in FINAL_PHASES:
                    self._job_wait.end()
                display.show(event)
        except SealingError as error:
            self._regranting.judge_refusal(error)
            # The job refused the dataset: the next call uploads again.
            self._directory.forget_refused(error)
            if error.code in NOT_ITS_DATASET and not self._directory.is_sealed_to(
                self._appraise().result.recipient
            ):
                self._regranting.is_restarted = True
                raise UnavailableError(ErrorCode.JOB_BUSY, "the job was started again") from error
            raise
