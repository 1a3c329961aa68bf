"""Appraisal of a result: the statement is about these files, this job, this dataset and these recipients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from trainer.attestation.checks import Check, CheckState
from trainer.encoding import canonical_json, sha256_hex
from trainer.receipt.statement import ReceiptOutcome, Statement, recipient_fingerprint


@dataclass(frozen=True)
class ExpectedResult:
    """What the provider compares a statement with; nothing here comes from the job's result.

    Args:
        job_spec_sha256: digest of the attested job spec.
        compose_sha256: attested compose hash.
        files: maps each file of the opened result, except the receipt and its evidence, to its SHA-256.
        recipients: the grant's recipients, or the provider's own if it no longer has the grant.
        exact: whether `recipients` are the grant's, so that no other may be listed.
        manifest_sha256: digest of the dataset's manifest; None if the provider no longer has it.
        max_epsilon: largest ε that the grant accepts; None if it demands no differential privacy.
        max_delta: largest δ that the grant accepts; None likewise.
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
    """Appraises a statement whose signature was verified. All checks are reported; numbers start at `first`.

    1. `receipt-files`: the statement's subjects and the files are equal in names and digests.
    2. `receipt-job-spec`: the job spec in the statement has the digest that the statement gives, and that is the
       attested one.
    3. `receipt-app`: the builder is the app whose compose hash was attested.
    4. `receipt-dataset`: the dataset is the one that was sealed.
    5. `receipt-recipients`: the result was sealed to the recipients of the grant and to no others.
    6. `receipt-privacy`, if the grant demands it: ε and δ of the weights are within the budget.
    """
    checks = (
        _check_files(statement, expected),
        *_check_origin(statement, expected),
        _check_recipients(statement, expected),
        *_check_privacy(statement, expected),
    )
    return tuple(replace(check, number=first + index) for index, check in enumerate(checks))


def _judge(code: str, title: str, expected: str, found: str, *, holds: bool) -> Check:
    state = CheckState.AFFIRMED if holds else CheckState.CONTRAINDICATED
    return Check(0, code, title, state, expected, found, None)


def _check_files(statement: Statement, expected: ExpectedResult) -> Check:
    listed, present = statement.files, dict(expected.files)
    if listed == present:
        found = f"{len(present)} files"
    else:
        names = sorted(name for name in listed.keys() | present.keys() if listed.get(name) != present.get(name))
        found = f"differs at {names[0]!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    return _judge(
        "receipt-files", "the files are those signed for", f"{len(listed)} files", found, holds=listed == present
    )


def _check_origin(statement: Statement, expected: ExpectedResult) -> Iterator[Check]:
    """Yields the checks of what the result was made by and from: job spec, app and dataset."""
    build, wanted = statement.predicate.buildDefinition, expected.job_spec_sha256
    parameters = build.externalParameters
    # The statement has the text and its digest. The digest is computed again from the text, so that whoever reads
    # the text reads what was attested.
    recomputed = sha256_hex(canonical_json(parameters.jobSpec))
    holds = parameters.jobSpecSha256 == recomputed == wanted
    yield _judge("receipt-job-spec", "made by the attested job spec", wanted, recomputed, holds=holds)

    wanted = f"urn:confidential-trainer:compose:sha256:{expected.compose_sha256}"
    found = statement.predicate.runDetails.builder.id
    yield _judge("receipt-app", "made by the attested app", wanted, found, holds=found == wanted)

    code, title = "receipt-dataset", "trained on the dataset that was sealed"
    found = build.internalParameters.datasetManifestSha256
    if expected.manifest_sha256 is None:
        yield Check(0, code, title, CheckState.NOT_DEMANDED, None, found, "no grant at hand to compare with")
    else:
        yield _judge(code, title, expected.manifest_sha256, found, holds=found == expected.manifest_sha256)


def _check_privacy(statement: Statement, expected: ExpectedResult) -> tuple[Check, ...]:
    """Returns the check of the privacy budget; none if no budget is demanded or the job failed without weights."""
    if (
        expected.max_epsilon is None
        or expected.max_delta is None
        or statement.outcome is not ReceiptOutcome.SUCCEEDED
    ):
        return ()
    found = statement.privacy.get("differential") if isinstance(statement.privacy, dict) else None
    numbers = [found.get(name) if isinstance(found, dict) else None for name in ("epsilon", "delta")]
    limits = (expected.max_epsilon, expected.max_delta)
    # A missing value fails. `bool` is a subclass of `int` in Python: `true` is not an epsilon of 1.
    holds = all(
        isinstance(number, int | float) and not isinstance(number, bool) and number <= limit
        for number, limit in zip(numbers, limits, strict=True)
    )
    title = "differentially private within the budget demanded"
    texts = [f"ε {one} at δ {other}" for one, other in (limits, numbers)]
    return (_judge("receipt-privacy", title, *texts, holds=holds),)


def _check_recipients(statement: Statement, expected: ExpectedResult) -> Check:
    # Without its grant, the provider can check that it is a recipient, but not that it is the only one.
    found = set(statement.predicate.buildDefinition.internalParameters.recipients)
    wanted = {recipient_fingerprint(recipient) for recipient in expected.recipients}
    holds = found == wanted if expected.exact else bool(found & wanted)
    return _judge(
        "receipt-recipients",
        "sealed to those granted, and nobody else" if expected.exact else "sealed to us",
        ", ".join(sorted(wanted)),
        ", ".join(sorted(found)),
        holds=holds,
    )
