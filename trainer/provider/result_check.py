"""Checks an opened result against its receipt, and the receipt against the attested job."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.attestation.checks import Check, CheckState
from trainer.attestation.evidence import MAX_STATEMENT_EVIDENCE_BYTES, parse_statement_evidence
from trainer.attestation.result.record import Record
from trainer.encoding import file_sha256, printable
from trainer.error_document import MAX_FAILURE_REPORT_BYTES, FailureReport
from trainer.errors import ErrorCode, JobError, VerificationError
from trainer.provider.receipt_record import ReceiptRecord, write_receipt_record
from trainer.provider.verification import verify_privacy_statement
from trainer.receipt.attested_statement import require_acceptable, verify_attested, verify_statement
from trainer.receipt.dsse import MAX_ENVELOPE_BYTES
from trainer.receipt.expected_result import ExpectedResult, GrantTerms
from trainer.receipt.model_signature import MODEL_SIGNATURE, verify_model_signature
from trainer.receipt.privacy_statement import (
    MAX_STATEMENT_BYTES,
    PRIVACY_STATEMENT,
    PrivacyPredicate,
)
from trainer.receipt.public_provenance import (
    MAX_PROVENANCE_BYTES,
    PUBLIC_PROVENANCE,
    check_public_provenance,
)
from trainer.receipt.receipt_appraisal import appraise_statement
from trainer.receipt.result_files import FAILURE_REPORT, require_result_file
from trainer.receipt.statement import (
    UNSIGNED_FILES,
    ReceiptOutcome,
    Statement,
    copied_files,
    parse_statement,
    reported_privacy,
)


@dataclass(frozen=True)
class OpenedResult:
    """A result that passed all checks.

    Args:
        folder: directory of the opened result.
        statement: the statement of its receipt.
        checks: the checks that it passed.
        failure: the error of a failed job, from its sealed report; None if the job succeeded.
        unchecked: what was not checked because the grant was not at hand, in words.
        privacy: what its `privacy.json` says of the weights; None if they are not differentially private.
        record: what lets others check it again; None if it was not opened just now.
    """

    folder: Path
    statement: Statement
    checks: tuple[Check, ...]
    failure: JobError | None = None
    unchecked: tuple[str, ...] = ()
    privacy: PrivacyPredicate | None = None
    record: ReceiptRecord | None = None

    @property
    def adapter(self) -> Path:
        """Directory of the LoRA adapter, in PEFT's layout."""
        return self.folder / "adapter"

    def write_record(self, *, deletion: bytes | None = None) -> None:
        """Writes what lets others check the result again beside it; `deletion` is the job's verified statement.

        Raises:
            ValueError: it was not opened just now.
        """
        if self.record is None:
            raise ValueError("nothing is known of the sealed result")
        write_receipt_record(self.folder, self.record, deletion=deletion)


def check_result(
    folder: Path,
    record: Record,
    *,
    terms: GrantTerms | None,
    own_recipients: Collection[str] | None,
    stanzas: int,
    restarted: Record | None = None,
) -> OpenedResult:
    """Checks an opened result against its receipt, and the receipt against the attested job.

    Args:
        folder: the opened result.
        record: the appraisal that the dataset was sealed on; a pass.
        terms: the grant's; None leaves what they would say unchecked.
        own_recipients: age recipients of the provider, one of which it must be sealed to where there are no terms;
            None if they are not at hand either.
        stanzas: how many stanzas the sealed file has.
        restarted: the appraisal of the job as it was started last, if it was.

    Raises:
        VerificationError: the receipt is missing or not signed by the quoted key, or a check fails.
    """
    # Signature and quote first: no field of the statement counts before the attested job is known to be its
    # author. The quote was made at the job's end and covers this statement's digest and the key that signed it.
    evidence = parse_statement_evidence(
        _read_limited(folder, "evidence.json", MAX_STATEMENT_EVIDENCE_BYTES)
    )
    envelope = _read_limited(folder, "receipt.json", MAX_ENVELOPE_BYTES)
    payload, quoted = verify_statement(envelope, evidence, "receipt", record, restarted=restarted)
    statement = parse_statement(payload)
    signature = Check(
        1,
        "receipt-signature",
        "signed by the quoted receipt key",
        CheckState.AFFIRMED,
        None,
        None,
        None,
    )
    files, report = file_digests(folder), _read_failure_report(folder)
    expected = ExpectedResult(
        job_spec_sha256=record.result.job_spec_sha256,
        compose_sha256=record.evidence.compose_hash.removeprefix("sha256:"),
        files=files,
        failure=report.code.value if report else None,
        stanzas=stanzas,
        attested_at=record.result.claims.issued_at,
        quoted_at=evidence.claims.issued_at,
        opened_at=int(time.time()),
        terms=terms,
        own_recipients=None if own_recipients is None else frozenset(own_recipients),
    )
    content = appraise_statement(statement, expected, first=2)
    require_acceptable(content)
    _require_result_files(folder, statement)
    if statement.outcome is ReceiptOutcome.SUCCEEDED:
        signed = _read_limited(folder, MODEL_SIGNATURE, MAX_ENVELOPE_BYTES)
        verify_model_signature(signed, files, bytes.fromhex(evidence.claims.receipt_key))
        public = _read_limited(folder, PUBLIC_PROVENANCE, MAX_PROVENANCE_BYTES)
        check_public_provenance(
            verify_attested(public, "provenance", record, restarted=restarted), statement
        )
    privacy, stated = (
        None,
        statement.privacy.get("differential") if isinstance(statement.privacy, dict) else None,
    )
    if stated is not None and statement.outcome is ReceiptOutcome.SUCCEEDED:
        privacy, check = _check_privacy_statement(
            folder, statement, record, files, restarted, number=2 + len(content)
        )
        content += (check,)
    checks, failure = (signature, *content, *quoted), report.as_error() if report else None
    return OpenedResult(folder, statement, checks, failure, privacy=privacy)


def _check_privacy_statement(
    folder: Path,
    statement: Statement,
    record: Record,
    files: Mapping[str, str],
    restarted: Record | None,
    *,
    number: int,
) -> tuple[PrivacyPredicate, Check]:
    """Checks that `privacy.json` says of these weights what the receipt says; returns what it says.

    The receipt has ε and δ of this run; `privacy.json` has the sums over all runs, rounded up.

    Raises:
        VerificationError: it does not, or a private result lacks it.
    """
    document = _read_limited(folder, PRIVACY_STATEMENT, MAX_STATEMENT_BYTES)
    said = verify_privacy_statement(document, record, files, restarted=restarted).predicate
    run = statement.predicate.runDetails.metadata.invocationId
    epsilon, delta = reported_privacy(statement.privacy)
    is_covered = (
        epsilon is not None
        and said.epsilon >= epsilon
        and delta is not None
        and said.delta >= delta
    )
    holds = said.run == run and is_covered
    check = Check(
        number,
        "privacy-statement",
        "privacy.json says of these weights what the receipt says",
        CheckState.AFFIRMED if holds else CheckState.CONTRAINDICATED,
        f"ε of at least {epsilon} at δ of at least {delta} for the run {run}",
        f"ε of {said.epsilon} at δ of {said.delta} for the run {said.run}",
        None,
    )
    require_acceptable((check,))
    return said, check


def file_digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file that the statement must list, by its name."""
    return {
        name: file_sha256(path)
        for path in folder.rglob("*")
        if path.is_file() and (name := path.relative_to(folder).as_posix()) not in UNSIGNED_FILES
    }


def _require_result_files(folder: Path, statement: Statement) -> None:
    """Requires that every file may be part of a result, and is what its name says.

    Raises:
        VerificationError: RECEIPT_MISMATCH. The job signed for the file all the same: it is not the code that the
            provider reviewed, or that code was taken over.
    """
    copied = copied_files(statement.predicate.buildDefinition.externalParameters.jobSpec)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        try:
            with path.open("rb") as file:
                require_result_file(name, file, path.stat().st_size, copied=copied)
        except ValueError as error:
            raise VerificationError(
                ErrorCode.RECEIPT_MISMATCH,
                f"the result has a file that it must not have: {printable(name)}",
                expected="weights, reports and logs of their kinds",
                found=error,
                hint="nothing was written; do not use this result",
            ) from None


def _read_failure_report(folder: Path) -> FailureReport | None:
    """Returns the failure report; None if there is none that can be read."""
    try:
        with (folder / FAILURE_REPORT).open("rb") as file:
            return FailureReport.parse(file.read(MAX_FAILURE_REPORT_BYTES + 1))
    except (OSError, ValueError):
        return None


def _read_limited(folder: Path, name: str, limit: int) -> bytes:
    path = folder / name
    if not path.is_file() or path.stat().st_size > limit:
        raise VerificationError(
            ErrorCode.RECEIPT_INVALID,
            f"the result's {name}",
            expected=f"at most {limit} bytes",
            found="missing or larger",
        )
    return path.read_bytes()
