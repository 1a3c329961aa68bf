"""What `trainer submit` is asked for, what comes of it, and how it reports progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainer.attestation.policy import Policy
from trainer.attestation.result.attestation_result import AttestationResult
from trainer.encoding import canonical_json, file_sha256
from trainer.models import Status
from trainer.provider.own_files import LocalSecret
from trainer.provider.result_check import OpenedResult
from trainer.provider_keys import ProviderKey
from trainer.receipt.deletion import DeletionStatement
from trainer.sealing.age import Identity
from trainer.sealing.bundle import GrantDemands
from trainer.sealing.joint_terms import JointTerms, make_joint_terms


class ProgressReporter(Protocol):
    """Shows a user how the submission proceeds; `trainer.cli.console.TerminalProgress` is one."""

    def step(self, title: str) -> None:
        """A step begins."""

    def line(self, text: str) -> None:
        """A line of text within the step."""

    def bytes_done(self, label: str, done: int, total: int) -> None:
        """Progress of a transfer, in bytes."""

    def phase(self, text: str) -> None:
        """The job entered a phase."""

    def training(self, status: Status) -> None:
        """A job in the phase `training` is this far."""

    def metrics(self, values: Mapping[str, str]) -> None:
        """Private metrics of an optimizer step: name → value, in words."""


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
        secret: authenticates what an earlier call kept.
        max_result_bytes: largest sealed result that is pulled.
        nonces: file that remembers spent nonces; None keeps no record of them.
        key: the provider's, which signs what is sent; None signs nothing.
        require: what the grant demands of the job beyond its spec.
        adapter: directory of the adapter that training starts from; None for a fresh one.
        job: path of the job spec; needed if it names columns or a format for the data, or with `adapter`.
        wait_seconds: how long a job that does not answer, or was interrupted, is waited for.
        accepts: provider keys of the others whose datasets a joint job may train on beside this one; none in a job
            of one provider.
        shared_with: age recipients of the other providers of a joint job, who get its result too.
    """

    data: Sequence[Path]
    source: str
    policy: Path
    identities: Sequence[Identity]
    output: Path
    cache: Path
    secret: LocalSecret
    max_result_bytes: int
    nonces: Path | None = None
    key: ProviderKey | None = None
    adapter: Path | None = None
    job: Path | None = None
    require: GrantDemands | None = None
    wait_seconds: float = 900.0
    accepts: Sequence[str] = ()
    shared_with: Sequence[str] = ()

    @property
    def recipients(self) -> list[str]:
        """The age recipients of the result."""
        return [*self._own_recipients, *self.shared_with]

    @property
    def joint(self) -> JointTerms | None:
        """What the grant demands of a joint job; None in a job of one provider."""
        return make_joint_terms(self.accepts, self._own_recipients) if self.accepts else None

    @property
    def _own_recipients(self) -> list[str]:
        return [str(identity.recipient()) for identity in self.identities]


@dataclass(frozen=True)
class SubmissionResult:
    """The end of a submission.

    Args:
        result: the opened result, or the failure report.
        evidence: the appraisal of the job, before anything was sent.
        seconds: duration of each step.
        deletion: what the job stated that it destroyed, verified; None if it sent no statement.
    """

    result: OpenedResult
    evidence: AttestationResult
    seconds: Mapping[str, float]
    deletion: DeletionStatement | None = None


def submission_identity(
    submission: Submission, policy: Policy, files: Mapping[str, Path], recipients: Sequence[str]
) -> bytes:
    """Returns canonical JSON of everything that makes a submission another one.

    Args:
        submission: what is submitted.
        policy: its policy, with the contents of every file that it names.
        files: name in the bundle → data file.
        recipients: whom the result is sealed to.
    """
    require = submission.require
    return canonical_json(
        {
            "source": submission.source,
            "policy_sha256": policy.sha256(),
            "data": {name: file_sha256(path) for name, path in files.items()},
            "recipients": list(recipients),
            **({"require": require.model_dump(mode="json")} if require else {}),
            **({"accepts": list(submission.accepts)} if submission.accepts else {}),
        }
    )
