"""Appraising a result: does the signed statement speak of exactly these files, this job, this dataset, us?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.attestation.checks import Check, CheckState
from trainer.encoding import canonical_json, sha256_hex
from trainer.receipt.statement import ReceiptOutcome, Statement, recipient_fingerprint


@dataclass(frozen=True)
class ExpectedResult:
    """What the provider knows without the job.

    `files` maps every file of the opened result, but the receipt and its evidence, to its SHA-256. `recipients`
    are the grant's (or, where the grant is not at hand, the provider's own, and `exact` is False).
    `manifest_sha256` is None where the provider no longer has it, `max_epsilon` and `max_delta` where
    it demanded none.
    """

    job_spec_sha256: str
    compose_sha256: str
    files: Mapping[str, str]
    recipients: frozenset[str]
    exact: bool
    manifest_sha256: str | None
    max_epsilon: float | None = None
    max_delta: float | None = None


def appraise_statement(statement: Statement, expected: ExpectedResult, *, first: int = 1) -> tuple[Check, ...]:
    """Judge a statement whose signature was verified. All checks are reported; numbers start at `first`.

    1. `receipt-files`: subjects and files are the same, names and digests;
    2. `receipt-job-spec`: the spec inside has the digest it states, and it is the attested one;
    3. `receipt-app`: built by the app whose compose hash was attested;
    4. `receipt-dataset`: trained on the dataset that was sealed;
    5. `receipt-recipients`: sealed to the recipients that were granted, and nobody else;
    6. `receipt-privacy`, where the grant demands it: the privacy spent on the weights is within its budget.
    """
    checks = (
        _files(statement, expected),
        _job_spec(statement, expected),
        _app(statement, expected),
        _dataset(statement, expected),
        _recipients(statement, expected),
        *_privacy(statement, expected),
    )
    return tuple(_numbered(check, first + index) for index, check in enumerate(checks))


def _numbered(check: Check, number: int) -> Check:
    return Check(number, check.code, check.title, check.state, check.expected, check.found, check.detail)


def _check(code: str, title: str, expected: str, found: str, *, holds: bool) -> Check:
    state = CheckState.AFFIRMED if holds else CheckState.CONTRAINDICATED
    return Check(0, code, title, state, expected, found, None)


def _files(statement: Statement, expected: ExpectedResult) -> Check:
    listed, present = statement.files, dict(expected.files)
    if listed == present:
        found = f"{len(present)} files"
    else:
        names = sorted(name for name in listed.keys() | present.keys() if listed.get(name) != present.get(name))
        found = f"differs at {names[0]!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    return _check(
        "receipt-files", "the files are those signed for", f"{len(listed)} files", found, holds=listed == present
    )


def _job_spec(statement: Statement, expected: ExpectedResult) -> Check:
    parameters = statement.predicate.buildDefinition.externalParameters
    recomputed = sha256_hex(canonical_json(parameters.jobSpec))
    holds = parameters.jobSpecSha256 == recomputed == expected.job_spec_sha256
    return _check(
        "receipt-job-spec", "made by the attested job spec", expected.job_spec_sha256, recomputed, holds=holds
    )


def _app(statement: Statement, expected: ExpectedResult) -> Check:
    wanted = f"urn:confidential-trainer:compose:sha256:{expected.compose_sha256}"
    found = statement.predicate.runDetails.builder.id
    return _check("receipt-app", "made by the attested app", wanted, found, holds=found == wanted)


def _dataset(statement: Statement, expected: ExpectedResult) -> Check:
    code, title = "receipt-dataset", "trained on the dataset that was sealed"
    found = statement.predicate.buildDefinition.internalParameters.datasetManifestSha256
    if expected.manifest_sha256 is None:
        return Check(0, code, title, CheckState.NOT_DEMANDED, None, found, "no grant at hand to compare with")
    return _check(code, title, expected.manifest_sha256, found, holds=found == expected.manifest_sha256)


def _privacy(statement: Statement, expected: ExpectedResult) -> tuple[Check, ...]:
    """Nothing to check where no budget was demanded, and where there are no weights."""
    if (
        expected.max_epsilon is None
        or expected.max_delta is None
        or statement.outcome is not ReceiptOutcome.SUCCEEDED
    ):
        return ()
    found = statement.privacy.get("differential") if isinstance(statement.privacy, dict) else None
    numbers = [found.get(name) if isinstance(found, dict) else None for name in ("epsilon", "delta")]
    limits = (expected.max_epsilon, expected.max_delta)
    holds = all(
        isinstance(number, int | float) and not isinstance(number, bool) and number <= limit
        for number, limit in zip(numbers, limits, strict=True)
    )
    title = "differentially private within the budget demanded"
    texts = [f"ε {one} at δ {other}" for one, other in (limits, numbers)]
    return (_check("receipt-privacy", title, *texts, holds=holds),)


def _recipients(statement: Statement, expected: ExpectedResult) -> Check:
    found = set(statement.predicate.buildDefinition.internalParameters.recipients)
    wanted = {recipient_fingerprint(recipient) for recipient in expected.recipients}
    holds = found == wanted if expected.exact else bool(found & wanted)
    return _check(
        "receipt-recipients",
        "sealed to those granted, and nobody else" if expected.exact else "sealed to us",
        ", ".join(sorted(wanted)),
        ", ".join(sorted(found)),
        holds=holds,
    )
