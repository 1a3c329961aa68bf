"""`trainer submit`: all of the provider's steps in one command, resumable at each of them.

    verify → seal → upload → watch → pull → open → acknowledge

What a step produced is kept in `SubmissionDirectory` until the result is in place. The same call again continues
after the last finished step. A job that was restarted in the meantime is verified again before anything is sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

from trainer.attestation.checks import Check
from trainer.attestation.result.record import Record
from trainer.encoding import canonical_json, file_sha256
from trainer.errors import ErrorCode, SealingError, UsageError, VerificationError
from trainer.models import Phase
from trainer.provider.dataset_files import find_data_files
from trainer.provider.grants import GrantRecord, seal_dataset
from trainer.provider.job_events import PrivateMetrics, watch_job
from trainer.provider.opening import OpenedResult, open_sealed_result
from trainer.provider.policies import read_policy
from trainer.provider.submission_directory import SubmissionDirectory, write_atomically
from trainer.provider.transport.carrier import Carrier
from trainer.provider.transport.carrier_registry import connect_to_job
from trainer.provider.verification import appraise_job, verify_deletion_statement
from trainer.receipt.deletion import DeletionStatement
from trainer.sealing.age import Identity
from trainer.sealing.bundle import GrantDemands

StepResult = TypeVar("StepResult")

_PHASES_BEFORE_UPLOAD: Final = frozenset({Phase.STARTING, Phase.PREPARING, Phase.AWAITING_DATASET})


class ProgressReporter(Protocol):
    """Shows a user how the submission proceeds; `trainer.cli.console.TerminalProgress` is one."""

    def step(self, title: str) -> None:
        """A step begins."""

    def line(self, text: str) -> None:
        """A line of text within the step."""

    def bytes_done(self, label: str, done: int, total: int) -> None:
        """Progress of a transfer, in bytes."""

    def steps_done(self, label: str, done: int, total: int) -> None:
        """Progress of training, in optimizer steps."""


@dataclass(frozen=True)
class Submission:
    """What to submit, where, under which policy, and where the result goes.

    Args:
        data: data files, or folders of them.
        source: location of the job: https URL or spool directory.
        policy: path of policy.yaml.
        identities: the provider's; the result is sealed to their recipients.
        output: directory for the result; must not exist.
        cache: directory for collateral.
        nonces: file that remembers spent nonces; None keeps no record of them.
        require: what the grant demands of the job beyond its spec.
        job: path of the job spec; needed if it names columns or a format for the data.
    """

    data: Sequence[Path]
    source: str
    policy: Path
    identities: Sequence[Identity]
    output: Path
    cache: Path
    nonces: Path | None = None
    job: Path | None = None
    require: GrantDemands | None = None


@dataclass(frozen=True)
class SubmissionResult:
    """The end of a submission.

    Args:
        result: the opened result, or the failure report.
        evidence_checks: checks of the job's evidence, before anything was sent.
        seconds: duration of each step.
        deletion: what the job stated that it destroyed, verified; None if it sent no statement.
    """

    result: OpenedResult
    evidence_checks: tuple[Check, ...]
    seconds: Mapping[str, float]
    deletion: DeletionStatement | None = None


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
        if output.exists():
            raise UsageError(ErrorCode.OUTPUT_EXISTS, f"{output} exists", hint="choose a new directory with -o")
        self._submission = submission
        self._report = report
        self._seconds: dict[str, float] = {}
        self._directory = SubmissionDirectory(output.with_name(output.name + ".submission"))
        self._files = find_data_files(submission.data)
        self._recipients = [str(identity.recipient()) for identity in submission.identities]

    def run(self) -> SubmissionResult:
        """Runs the steps; once more from the start if the job turns out to have been restarted."""
        if self._directory.open_for(self._describe_submission()):
            self._report.line(f"going on with the submission in {self._directory.path}")
        try:
            return self._run_steps()
        except VerificationError as error:
            # A restarted job has a new TLS key. Once the result is here, the job is no longer needed.
            if error.code is not ErrorCode.TLS_KEY_MISMATCH or self._directory.sealed_result.exists():
                raise
        self._report.step("verify the job again: it was restarted")
        self._directory.adopt_restarted_job(self._appraise())
        return self._run_steps()

    def _describe_submission(self) -> bytes:
        """Returns canonical JSON of everything that makes this submission another one."""
        require = self._submission.require
        return canonical_json(
            {
                "source": self._submission.source,
                "policy_sha256": file_sha256(self._submission.policy),
                "data": {name: file_sha256(path) for name, path in self._files.items()},
                "recipients": self._recipients,
                **({"require": require.model_dump(mode="json")} if require else {}),
            }
        )

    def _run_steps(self) -> SubmissionResult:
        record = self._measure_time("verify", self._verify)
        grant = self._measure_time("seal", lambda: self._seal(record))
        # From here on only the key that the appraised claims name gets a byte.
        client = connect_to_job(self._submission.source, pinned_spki_sha256=self._directory.load_peer_key(record))
        if not self._directory.sealed_result.exists():
            self._measure_time("upload", lambda: self._upload(client))
            self._measure_time("watch", lambda: self._watch(client, grant))
            self._measure_time("pull", lambda: self._pull(client))
        result = self._measure_time("open", lambda: self._open(record, grant))
        deletion = self._acknowledge(client, record, grant)
        return SubmissionResult(result, record.result.checks, self._seconds, deletion)

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
        record = appraise_job(
            connect_to_job(submission.source),
            read_policy(submission.policy),
            cache=submission.cache,
            nonces=submission.nonces,
        )
        record.result.require_pass(record.result.appraised_at)
        return record

    def _seal(self, record: Record) -> GrantRecord:
        if (grant := self._directory.load_grant()) is not None:
            return grant
        self._report.step("check and seal the dataset")
        self._directory.discard_sealed_dataset()
        grant = seal_dataset(
            self._files,
            record.result,
            self._recipients,
            self._directory.sealed_dataset,
            progress=lambda done, total: self._report.bytes_done("sealing", done, total),
            job=self._submission.job,
            token=self._directory.load_earlier_token(),
            require=self._submission.require,
        )
        self._directory.save_grant(grant)
        return grant

    def _upload(self, client: Carrier) -> None:
        directory = self._directory
        if directory.uploaded.exists():
            return
        if directory.upload_begun.exists() and client.status().phase not in _PHASES_BEFORE_UPLOAD:
            # The upload was complete when an earlier call was interrupted: the job has taken it.
            directory.uploaded.touch()
            return
        self._report.step("upload the sealed dataset")
        directory.upload_begun.touch()
        size = directory.sealed_dataset.stat().st_size
        client.upload(
            directory.sealed_dataset,
            progress=lambda sent: self._report.bytes_done("uploading", sent, size),
            state=directory.upload_state,
        )
        directory.uploaded.touch()

    def _watch(self, client: Carrier, grant: GrantRecord) -> None:
        self._report.step("wait for the training")
        phase: Phase | None = None
        try:
            for event in watch_job(client, self._submission.identities, grant.grant.token):
                if isinstance(event, PrivateMetrics):
                    self._report.line("  " + event.summarize())
                    continue
                if event.phase is not phase:
                    phase = event.phase
                    self._report.line(f"  {phase.value}")
                if phase is Phase.TRAINING:
                    self._report.steps_done("training", event.step, event.total_steps)
        except SealingError:
            self._directory.forget_upload()  # the job refused the dataset: the next call uploads again
            raise

    def _pull(self, client: Carrier) -> None:
        self._report.step("pull the sealed result")
        size = client.status().result_bytes or 0
        client.download_result(
            self._directory.sealed_result, progress=lambda done: self._report.bytes_done("pulling", done, size)
        )

    def _open(self, record: Record, grant: GrantRecord) -> OpenedResult:
        self._report.step("open and check the result")
        return open_sealed_result(
            self._directory.sealed_result,
            self._submission.identities,
            self._submission.output,
            record=record,
            grant=grant,
        )

    def _acknowledge(self, client: Carrier, record: Record, grant: GrantRecord) -> DeletionStatement | None:
        """Ends the job and removes the directory; keeps the verified statement as `OUTPUT.deletion.json`.

        The acknowledgement comes last: after it the job destroys the result, so it must have opened here.
        """
        envelope = client.acknowledge()
        # Hashed before the directory is removed: the statement must name the result that arrived here.
        result_sha256 = file_sha256(self._directory.sealed_result)
        self._directory.remove()
        if envelope is None:
            self._report.line("the job gave no statement of what it destroyed")
            return None
        statement = verify_deletion_statement(
            envelope, record, result_sha256=result_sha256, manifest_sha256=grant.manifest_sha256
        )
        output = self._submission.output
        write_atomically(output.with_name(output.name + ".deletion.json"), envelope)
        return statement
