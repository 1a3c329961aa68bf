"""The privacy statement: how private the weights are, and nothing else, so that it can travel with them.

The receipt says it too, beside losses and counts that no noise covers. This one is an in-toto Statement v1 of
its own, signed by the receipt key, with a quote of its own. Its subject are the weights. ε is rounded up to two
digits: all digits of it, like sampling rate, noise and steps, would lead to the exact number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from trainer.encoding import canonical_json
from trainer.errors import ErrorCode, VerificationError
from trainer.models import Sha256Hex, Strict
from trainer.receipt.statement import STATEMENT_TYPE, ResourceDescriptor, parse_receipt_json

PRIVACY_STATEMENT: Final = "privacy.json"
"""Its name in a result."""

PREDICATE_TYPE: Final = "urn:confidential-trainer:differential-privacy:v1"
MAX_STATEMENT_BYTES: Final = 1 << 20

_Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PrivacyPredicate(Strict):
    """The predicate: the weights are (ε, δ)-differentially private.

    Attributes:
        jobSpecSha256: the job spec, which is public and has the budget.
        run: random id of the run, as in the receipt.
        runs: how many runs over this dataset the job knew of; ε and δ are the sums over them.
        unit: what neighbouring datasets differ by.
        neighbours: `zero-out`: as many rows, of which one contributes nothing (docs/privacy.md).
        epsilon: upper bound on ε, rounded up.
        delta: δ.
        accountant: how ε was computed.
    """

    jobSpecSha256: Sha256Hex  # noqa: N815 -- as in the receipt
    run: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    runs: Annotated[int, Field(ge=1)]
    unit: Literal["row"] = "row"
    neighbours: Literal["zero-out"] = "zero-out"
    epsilon: _Positive
    delta: _Positive
    accountant: Literal["prv", "rdp"]


class PrivacyStatement(Strict):
    """in-toto Statement v1 with a privacy predicate."""

    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: Annotated[tuple[ResourceDescriptor, ...], Field(min_length=1, max_length=100_000)]
    predicateType: Literal["urn:confidential-trainer:differential-privacy:v1"]  # noqa: N815
    predicate: PrivacyPredicate

    @property
    def files(self) -> dict[str, str]:
        """Maps the name of each file of weights to its SHA-256."""
        return {resource.name: resource.digest.sha256 for resource in self.subject}


_STATEMENT: Final = TypeAdapter(PrivacyStatement)


def weights_of(files: Mapping[str, str]) -> dict[str, str]:
    """Returns those files of a result that are weights, with their digests."""
    return {
        name: digest
        for name, digest in files.items()
        if name.startswith(("adapter/", "merged/")) and name.endswith(".safetensors")
    }


def make_privacy_statement(predicate: PrivacyPredicate, files: Mapping[str, str]) -> bytes:
    """Returns the statement as canonical JSON, the payload of its envelope.

    Args:
        predicate: what is said of the weights.
        files: maps each file of the result to its SHA-256.
    """
    weights = sorted(weights_of(files).items())
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in weights],
            "predicateType": PREDICATE_TYPE,
            "predicate": predicate.model_dump(mode="json"),
        }
    )


def check_privacy_statement(
    payload: bytes, *, job_spec_sha256: str, files: Mapping[str, str]
) -> PrivacyStatement:
    """Checks the payload of an envelope whose signature and quote were verified; returns the statement.

    1. It is a privacy statement.
    2. It is about this job spec, and about these weights, all of them.

    Args:
        payload: the payload.
        job_spec_sha256: digest of the attested job spec.
        files: maps each file of the result, or of what was handed on of it, to its SHA-256.

    Raises:
        VerificationError: RECEIPT_INVALID (1) or RECEIPT_MISMATCH (2).
    """
    statement = parse_receipt_json(_STATEMENT, payload, what="privacy statement")
    signed = [(resource.name, resource.digest.sha256) for resource in statement.subject]
    pairs = (
        ("job spec", job_spec_sha256, statement.predicate.jobSpecSha256),
        ("weights", sorted(weights_of(files).items()), sorted(signed)),
    )
    for name, wanted, found in pairs:
        if wanted != found:
            raise VerificationError(
                ErrorCode.RECEIPT_MISMATCH,
                f"privacy statement: it is about other {name}",
                expected=wanted,
                found=found,
                hint="do not rely on its ε for these weights",
            )
    return statement
