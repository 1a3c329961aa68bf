"""The public provenance: what of a receipt may be shown to everyone, as a statement of its own.

A receipt names data files, recipients, losses and counts of rows. This one is a second in-toto Statement v1 with a
SLSA provenance v1 predicate, made from a closed list of the receipt's fields: the model's files, the job spec and
the base model (both public before the job began), the measured app and its libraries, the run's id and its end.
It has a signature by the receipt key and a quote of its own, so that it can travel with the weights.
"""

from __future__ import annotations

from typing import Final

from pydantic import JsonValue

from trainer.encoding import canonical_json
from trainer.errors import ErrorCode, VerificationError
from trainer.receipt.statement import (
    BUILD_TYPE,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    Statement,
    model_dependencies,
)

PUBLIC_PROVENANCE: Final = "provenance.json"
"""Its name in a result: an `AttestedEnvelope`."""

MAX_PROVENANCE_BYTES: Final = 16 << 20
_MODEL_DIRECTORIES: Final = ("adapter/", "merged/")


def make_public_provenance(receipt: Statement) -> bytes:
    """Returns the statement as canonical JSON, the payload of its envelope; it follows from the receipt alone."""
    build, run = receipt.predicate.buildDefinition, receipt.predicate.runDetails
    parameters = build.externalParameters
    files = [
        (name, digest)
        for name, digest in receipt.files.items()
        if name.startswith(_MODEL_DIRECTORIES)
    ]
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [_descriptor(name, digest) for name, digest in sorted(files)],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "buildDefinition": {
                    "buildType": BUILD_TYPE,
                    "externalParameters": parameters.model_dump(mode="json"),
                    "resolvedDependencies": [
                        _descriptor(name, digest)
                        for name, digest in model_dependencies(parameters.jobSpec)
                    ],
                },
                "runDetails": {
                    "builder": run.builder.model_dump(mode="json"),
                    "metadata": {
                        "invocationId": run.metadata.invocationId,
                        # without its start: together they would say how large the dataset is
                        "finishedOn": run.metadata.finishedOn,
                    },
                },
            },
        }
    )


def check_public_provenance(payload: bytes, receipt: Statement) -> None:
    """Checks the payload of an envelope whose signature and quote were verified.

    Raises:
        VerificationError: RECEIPT_MISMATCH: it says something else than the receipt, or more.
    """
    if payload != make_public_provenance(receipt):
        raise VerificationError(
            ErrorCode.RECEIPT_MISMATCH,
            f"{PUBLIC_PROVENANCE} does not follow from the receipt",
            expected="the receipt's public fields, and nothing else",
            found="another statement",
            hint="do not publish it, and do not use this result",
        )


def _descriptor(name: str, digest: str) -> JsonValue:
    return {"name": name, "digest": {"sha256": digest}}
