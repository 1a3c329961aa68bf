"""Errors: each has a stable public code, an exit code, what was expected, what was found, and a hint.

Inside the TEE only `TrainerError.code` may become public: messages, `expected`, `found` and `hint` may quote
private content and belong in the sealed log. On the provider's machine all of them are shown.
"""

from __future__ import annotations

import copyreg
from enum import IntEnum, StrEnum
from typing import Any, ClassVar, Final


class ExitCode(IntEnum):
    """Exit codes of `trainer`; part of the command-line contract."""

    DONE = 0
    BUG = 1
    USAGE = 2
    UNAVAILABLE = 3
    VERIFICATION = 4
    SEALING = 5
    JOB = 6
    LOCAL_DATA = 7


class ErrorCode(StrEnum):
    """Closed set of public codes: safe to show to anyone, at any time."""

    INTERNAL = "internal-error"

    # 2: what was asked for cannot be done as asked
    USAGE = "usage"
    FILE_NOT_FOUND = "file-not-found"
    OUTPUT_EXISTS = "output-exists"
    SPEC_INVALID = "spec-invalid"
    SPEC_UNKNOWN_KEY = "spec-unknown-key"
    SPEC_TOO_LARGE = "spec-too-large"
    HUB_TOKEN_INVALID = "hub-token-invalid"  # noqa: S105 -- a code
    STORE_REFUSED = "store-refused"
    POLICY_INVALID = "policy-invalid"
    IDENTITY_INVALID = "identity-invalid"
    RECIPIENT_INVALID = "recipient-invalid"
    REQUEST_INVALID = "request-invalid"
    NOT_FOUND = "not-found"
    UNAUTHORIZED = "unauthorized"
    RESULT_TOO_LARGE = "result-too-large"

    # 3: something outside did not answer; a retry may help
    GUEST_AGENT_UNAVAILABLE = "guest-agent-unavailable"
    GUEST_AGENT_PROTOCOL = "guest-agent-protocol"
    GPU_EVIDENCE_UNAVAILABLE = "gpu-evidence-unavailable"
    JOB_UNREACHABLE = "job-unreachable"
    JOB_BUSY = "job-busy"
    COLLATERAL_UNAVAILABLE = "collateral-unavailable"
    MODEL_UNAVAILABLE = "model-unavailable"
    STORAGE_FULL = "storage-full"
    STORE_UNAVAILABLE = "store-unavailable"
    TIMEOUT = "timeout"
    TOO_MANY_REQUESTS = "too-many-requests"
    WRONG_PHASE = "wrong-phase"
    UPLOAD_CONFLICT = "upload-conflict"

    # 4: do not upload, do not trust
    EVIDENCE_INVALID = "evidence-invalid"
    VERIFICATION_FAILED = "verification-failed"
    ATTESTATION_EXPIRED = "attestation-expired"
    TLS_KEY_MISMATCH = "tls-key-mismatch"
    RECEIPT_INVALID = "receipt-invalid"
    RECEIPT_MISMATCH = "receipt-mismatch"

    # 5: sealing or opening failed
    HEADER_INVALID = "sealed-header-invalid"
    ARMOR_INVALID = "sealed-armor-invalid"
    NO_IDENTITY_MATCH = "no-identity-match"
    HEADER_MAC = "sealed-header-mac"
    PAYLOAD_INVALID = "sealed-payload-invalid"
    BUNDLE_INVALID = "bundle-invalid"
    GRANT_MISMATCH = "grant-mismatch"
    GRANT_EXPIRED = "grant-expired"
    GRANT_UNSIGNED = "grant-unsigned"
    GRANT_SIGNER_UNKNOWN = "grant-signer-unknown"
    GRANT_SIGNATURE_INVALID = "grant-signature-invalid"
    GRANTS_DIFFER = "grants-differ"
    DATASET_DUPLICATE = "dataset-duplicate"
    GRANT_WITHDRAWN = "grant-withdrawn"
    REGRANT_INVALID = "regrant-invalid"
    RESULT_DIGEST_MISMATCH = "result-digest-mismatch"
    CHECKPOINT_INVALID = "checkpoint-invalid"

    # 6: the job failed
    MODEL_DIGEST_MISMATCH = "model-digest-mismatch"
    MODEL_INVALID = "model-invalid"
    DATASET_INVALID = "dataset-invalid"
    DATASET_ROW_INVALID = "dataset-row-invalid"
    DATASET_NOT_TRAINABLE = "dataset-not-trainable"
    DATASET_UNRENDERED = "dataset-unrendered"
    DATASET_OVERLONG = "dataset-overlong"
    DATASET_TIMEOUT = "dataset-timeout"
    DATASET_TOO_LARGE = "dataset-too-large"
    ENGINE_UNAVAILABLE = "engine-unavailable"
    PRIVACY_UNPROVEN = "privacy-unproven"
    PRIVACY_NOT_MET = "privacy-not-met"
    RELEASE_WITHHELD = "release-withheld"
    TRAINING_DIVERGED = "training-diverged"
    OUT_OF_MEMORY = "out-of-memory"
    WORKER_DIED = "worker-died"
    FRONT_DIED = "front-died"
    STORE_SYNC_DIED = "store-sync-died"
    WORKSPACE_UNSAFE = "workspace-unsafe"
    WORKSPACE_FULL = "workspace-full"
    SANDBOX_INCOMPLETE = "sandbox-incomplete"
    INTERRUPTED = "interrupted"
    JOB_FAILED = "job-failed"


RESUMABLE: Final = frozenset(
    {
        ErrorCode.INTERRUPTED,
        ErrorCode.WORKER_DIED,
        ErrorCode.FRONT_DIED,
        ErrorCode.STORE_SYNC_DIED,
        ErrorCode.STORAGE_FULL,
    }
)
"""Failures of a job that say nothing against its dataset or spec: the next start of the job goes on."""

DATASET_FAULTS: Final = frozenset({
    ErrorCode.DATASET_INVALID,
    ErrorCode.DATASET_ROW_INVALID,
    ErrorCode.DATASET_NOT_TRAINABLE,
    ErrorCode.DATASET_UNRENDERED,
    ErrorCode.DATASET_OVERLONG,
    ErrorCode.DATASET_TOO_LARGE,
    ErrorCode.PRIVACY_NOT_MET,
})  # fmt: skip
"""Failures before the first optimizer step that another dataset, or another grant, would not have."""


class TrainerError(Exception):
    """Base of all errors this project raises on purpose.

    Args:
        code: public code of the failure.
        message: what went wrong, in one clause, for the person who may see private content.
        expected: the value that was required; shown together with `found`.
        found: the value that was there instead.
        hint: what to do about it.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.BUG

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        self.code = code
        self.message = message
        self.expected = expected
        self.found = found
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        if self.expected is None:
            return self.message
        return f"{self.message}: expected {self.expected}, got {self.found}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns how another process makes the same error: from its attributes, not by its constructor."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class UsageError(TrainerError):
    """The command, a file or a field is not what it must be; repeating it will not help."""

    exit_code = ExitCode.USAGE


def install_command(extra: str) -> str:
    """Returns the command that installs this package with one of its extras."""
    return f"pip install 'confidential-trainer[{extra}]'"


def missing_package(
    name: str | None, extra: str, purpose: str, *, otherwise: str | None = None
) -> UsageError:
    """Returns the error for a package that is not installed.

    Args:
        name: of the package, as the failed import gives it.
        extra: the extra of this package that brings it.
        purpose: what needs it.
        otherwise: what can be done without it, in the imperative.
    """
    hint = install_command(extra) + (f", or {otherwise}" if otherwise else "")
    what = f"{purpose} needs a package"
    return UsageError(ErrorCode.USAGE, what, expected=name, found="none", hint=hint)


class UnavailableError(TrainerError):
    """Something outside this process did not answer; a retry may help.

    Attributes:
        waited: seconds that an answer was waited for before this was raised, where a caller counts them.
    """

    exit_code = ExitCode.UNAVAILABLE
    waited: float = 0.0


class VerificationError(TrainerError):
    """Evidence, receipt or policy do not fit: do not upload, do not use the result."""

    exit_code = ExitCode.VERIFICATION


class SealingError(TrainerError):
    """Encryption or decryption failed: a wrong key, changed or truncated bytes, or bytes for another job."""

    exit_code = ExitCode.SEALING


class JobError(TrainerError):
    """The job failed for a reason that its provider must know."""

    exit_code = ExitCode.JOB


class DataError(JobError):
    """A row or file of the dataset is not usable; raised where the rows are read.

    Args:
        code: public code.
        reason: what is wrong, in terms of the format; it never quotes the row.
        file: name of the file as the provider gave it, relative to `data/`.
        row: zero-based index of the row in its file; for JSONL, line = row + 1.
        field: path of the field, such as `messages[2].role`; made of known names and indices only.
        expected: what the field must be.
        found: type or length of what is there; never its content.
        hint: what to do about it.
    """

    exit_code = ExitCode.LOCAL_DATA

    def __init__(
        self,
        code: ErrorCode,
        reason: str,
        *,
        file: str | None = None,
        row: int | None = None,
        field: str | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        self.file = file
        self.row = row
        self.field = field
        self.reason = reason
        place = ", ".join(
            f"{name} {value}"
            for name, value in (("file", file), ("row", row), ("field", field))
            if value is not None
        )
        message = f"{place}: {reason}" if place else reason
        super().__init__(code, message, expected=expected, found=found, hint=hint)


class ReportedDataError(DataError):
    """A `DataError` of a job, as its failure report describes it: the dataset was sent, and the job failed."""

    exit_code = ExitCode.JOB
