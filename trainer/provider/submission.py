"""`trainer submit`: the provider's whole story in one command, resumable at every step.

verify → seal → upload → watch → pull → open

What each step made is kept in a private directory beside the output (`DIR.submission`) until the result is in
place. Called again with the same arguments, the story goes on where it stopped; a job that was restarted meanwhile
is verified once more.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

from pydantic import JsonValue

from trainer import provider
from trainer.attestation.checks import Check
from trainer.attestation.result.record import Record, save_record
from trainer.encoding import canonical_json, file_sha256
from trainer.errors import ErrorCode, SealingError, UsageError, VerificationError
from trainer.models import Phase, Status
from trainer.provider import GrantRecord, PrivateMetrics
from trainer.provider.opening import OpenedResult, open_sealed_result
from trainer.provider.transport.carrier import Carrier
from trainer.receipt.deletion import DeletionStatement
from trainer.sealing.age import Identity
from trainer.sealing.atomic_files import PRIVATE_MODE, replace_atomically
from trainer.sealing.bundle import GrantDemands

T = TypeVar("T")

_BEFORE_UPLOAD: Final = frozenset({Phase.STARTING, Phase.PREPARING, Phase.AWAITING_DATASET})
_SHOWN_METRICS: Final = ("step", "loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second")


class Reporter(Protocol):
    """Who is told how the story goes; `trainer.cli.console.Report` is one."""

    def step(self, title: str) -> None:
        """A step begins."""

    def line(self, text: str) -> None:
        """Something worth a line."""

    def bytes_done(self, label: str, done: int, total: int) -> None:
        """Progress of a transfer in bytes."""

    def steps_done(self, label: str, done: int, total: int) -> None:
        """Progress of training in optimizer steps."""


@dataclass(frozen=True)
class Submission:
    """What to submit, where, under which policy, and where the result goes.

    Args:
        data: data files.
        source: https URL of the job, or its spool directory.
        policy: policy.yaml.
        identities: the provider's; the result is sealed to their recipients.
        output: directory for the result; must not exist.
        cache: directory for collateral.
        nonces: file that remembers spent nonces; None keeps no record of them.
        require: what the grant demands of the job beyond its spec.
        job: the job's spec, where the data has columns or a format that it names.
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
class Submitted:
    """The end of the story: the opened result, all checks made on the way, and seconds per step."""

    result: OpenedResult
    checks: tuple[Check, ...]
    seconds: Mapping[str, float]
    deletion: DeletionStatement | None = None
    """What the job says that it destroyed, checked; it lies beside the output as `DIR.deletion.json`."""


def submit(submission: Submission, report: Reporter) -> Submitted:
    """Go through all steps; see the module.

    Raises:
        TrainerError: of the step that failed; what earlier steps made is kept for the next call.
    """
    return _SubmissionRun(submission, report).run()


class _SubmissionRun:
    """One submission under way; `kept` is its private directory."""

    def __init__(self, submission: Submission, report: Reporter) -> None:
        output = submission.output
        if output.exists():
            raise UsageError(ErrorCode.OUTPUT_EXISTS, f"{output} exists", hint="choose a new directory with -o")
        self.submission = submission
        self.report = report
        self.seconds: dict[str, float] = {}
        self.kept = output.with_name(output.name + ".submission")
        self.files = provider.data_files(submission.data)
        self.recipients = [str(identity.recipient()) for identity in submission.identities]

    def run(self) -> Submitted:
        """All steps in order."""
        self._begin()
        try:
            return self._steps()
        except VerificationError as error:
            if error.code is not ErrorCode.TLS_KEY_MISMATCH or (self.kept / "result.tar.age").exists():
                raise
            self._verify_restarted()
            return self._steps()

    def _steps(self) -> Submitted:
        record = self._timed("verify", self._verify)
        grant = self._timed("seal", lambda: self._seal(record))
        client = provider.connect_to_job(self.submission.source, pinned_spki_sha256=self._peer(record))
        sealed_result = self.kept / "result.tar.age"
        if not sealed_result.exists():
            self._timed("upload", lambda: self._upload(client))
            self._timed("watch", lambda: self._watch(client, grant))
            self._timed("pull", lambda: self._pull(client, sealed_result))
        result = self._timed("open", lambda: self._open(sealed_result, record, grant))
        envelope, digest = client.acknowledge(), file_sha256(sealed_result)
        shutil.rmtree(self.kept)
        deletion = self._check_deletion(envelope, digest, record, grant)
        return Submitted(result, (*record.result.checks, *result.checks), self.seconds, deletion)

    def _check_deletion(
        self, envelope: bytes | None, digest: str, record: Record, grant: GrantRecord
    ) -> DeletionStatement | None:
        if envelope is None:
            self.report.line("the job gave no statement of what it destroyed")
            return None
        statement = provider.check_deletion_of(
            envelope, record, result_sha256=digest, manifest_sha256=grant.manifest_sha256
        )
        output = self.submission.output
        _keep(output.with_name(output.name + ".deletion.json"), envelope)
        return statement

    def _timed(self, name: str, action: Callable[[], T]) -> T:
        started = time.monotonic()
        try:
            return action()
        finally:
            self.seconds[name] = round(time.monotonic() - started, 3)

    def _begin(self) -> None:
        """Note what this submission is, or make sure that the one under way is the same."""
        described = canonical_json(
            {
                "source": self.submission.source,
                "policy_sha256": file_sha256(self.submission.policy),
                "data": {name: file_sha256(path) for name, path in self.files.items()},
                "recipients": self.recipients,
                **({"require": require.model_dump(mode="json")} if (require := self.submission.require) else {}),
            }
        )
        note = self.kept / "submission.json"
        if not note.exists():
            self.kept.mkdir(mode=0o700, parents=True, exist_ok=True)
            _keep(note, described)
        elif note.read_bytes() != described:
            raise UsageError(
                ErrorCode.USAGE,
                f"another submission is under way in {self.kept}",
                expected="the same job, policy, data and identity",
                found="others",
                hint=f"repeat the earlier command, or remove {self.kept} to give it up",
            )
        else:
            self.report.line(f"going on with the submission in {self.kept}")

    def _verify(self) -> Record:
        saved = self.kept / "attestation.json"
        if saved.exists():
            record = provider.read_record(saved)
            if (self.kept / "grant.json").exists() or record.result.expires_at > time.time():
                return record
        self.report.step("verify the job")
        record = self._attest()
        _keep(saved, save_record(record))
        return record

    def _attest(self) -> Record:
        policy = provider.read_policy(self.submission.policy)
        client = provider.connect_to_job(self.submission.source)
        record = provider.attest(client, policy, cache=self.submission.cache, nonces=self.submission.nonces)
        record.result.require_pass(record.result.appraised_at)
        return record

    def _peer(self, record: Record) -> str | None:
        """Digest of the TLS key of the job as it was started last."""
        later = self.kept / "restarted.json"
        return (provider.read_record(later) if later.exists() else record).result.peer_spki_sha256

    def _verify_restarted(self) -> None:
        """Somebody else answers: the same job after a restart, if it passes; the dataset is sealed to it anew.

        Where it was sealed to the app's derived key, what was sealed stays good. Otherwise the new grant has the
        old one's token, so that the job finds its checkpoints.
        """
        self.report.step("verify the job again: it was restarted")
        earlier, now = provider.read_record(self.kept / "attestation.json"), self._attest()
        stale = ["uploaded", "upload.json"]
        if now.result.recipient == earlier.result.recipient:
            _keep(self.kept / "restarted.json", save_record(now))
        else:
            stale += ["upload-begun", "dataset.age", "restarted.json"]
            if (self.kept / "grant.json").exists():
                (self.kept / "grant.json").rename(self.kept / "earlier-grant.json")
            _keep(self.kept / "attestation.json", save_record(now))
        for name in stale:
            (self.kept / name).unlink(missing_ok=True)

    def _seal(self, record: Record) -> GrantRecord:
        kept, sealed = self.kept / "grant.json", self.kept / "dataset.age"
        earlier = self.kept / "earlier-grant.json"
        if kept.exists() and sealed.exists():
            return provider.read_grant(kept)
        self.report.step("check and seal the dataset")
        for stale in (kept, sealed):
            stale.unlink(missing_ok=True)
        grant = provider.seal_dataset(
            self.files,
            record.result,
            self.recipients,
            sealed,
            progress=lambda done, total: self.report.bytes_done("sealing", done, total),
            job=self.submission.job,
            token=provider.read_grant(earlier).grant.token if earlier.exists() else None,
            require=self.submission.require,
        )
        _keep(kept, grant.model_dump_json().encode())
        return grant

    def _upload(self, client: Carrier) -> None:
        begun, done = self.kept / "upload-begun", self.kept / "uploaded"
        if done.exists():
            return
        if begun.exists() and client.status().phase not in _BEFORE_UPLOAD:
            done.touch()  # it was whole when we were interrupted: the job has taken it
            return
        self.report.step("upload the sealed dataset")
        begun.touch()
        sealed = self.kept / "dataset.age"
        size = sealed.stat().st_size
        client.upload(
            sealed,
            progress=lambda sent: self.report.bytes_done("uploading", sent, size),
            state=self.kept / "upload.json",
        )
        done.touch()

    def _watch(self, client: Carrier, grant: GrantRecord) -> None:
        self.report.step("wait for the training")
        phase: Phase | None = None
        try:
            for event in provider.watch(client, self.submission.identities, grant.grant.token):
                phase = self._tell(event, phase)
        except SealingError:
            for name in ("uploaded", "upload-begun"):
                (self.kept / name).unlink(missing_ok=True)
            raise

    def _tell(self, event: Status | PrivateMetrics, phase: Phase | None) -> Phase | None:
        if isinstance(event, PrivateMetrics):
            self.report.line("  " + describe_metrics(event))
            return phase
        if event.phase is not phase:
            self.report.line(f"  {event.phase.value}")
        if event.phase is Phase.TRAINING:
            self.report.steps_done("training", event.step, event.total_steps)
        return event.phase

    def _pull(self, client: Carrier, target: Path) -> None:
        self.report.step("pull the sealed result")
        size = client.status().result_bytes or 0
        client.download_result(target, progress=lambda done: self.report.bytes_done("pulling", done, size))

    def _open(self, source: Path, record: Record, grant: GrantRecord) -> OpenedResult:
        self.report.step("open and check the result")
        return open_sealed_result(
            source, self.submission.identities, self.submission.output, record=record, grant=grant
        )


def _keep(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all: the next call must be able to rely on it."""
    with replace_atomically(path, PRIVATE_MODE) as file:
        file.write(data)


def describe_metrics(metrics: PrivateMetrics) -> str:
    """One line for a person: `step 12  loss 1.234  …`."""
    values = metrics.values
    shown = [name for name in _SHOWN_METRICS if name in values]
    return "  ".join(f"{name.replace('_', ' ')} {_short(values[name])}" for name in shown)


def _short(value: JsonValue) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
