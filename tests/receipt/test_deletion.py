"""The deletion statement: what holds is accepted; each thing that does not is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from trainer.errors import ErrorCode, VerificationError
from trainer.receipt.deletion import (
    DeletionPredicate,
    DestroyedItem,
    ExpectedDeletion,
    make_deletion_statement,
    verify_deletion,
)
from trainer.receipt.dsse import public_key_der, sign_envelope

NOW = 1_790_000_000
KEY = ec.generate_private_key(ec.SECP256R1())
SPEC, RESULT, MANIFEST = "a" * 64, "b" * 64, "c" * 64
DELETION = DeletionPredicate(
    jobSpecSha256=SPEC,
    datasetManifestSha256=MANIFEST,
    acknowledged=True,
    destroyed=dict.fromkeys(DestroyedItem, NOW),
    signedAt=NOW,
)
AWAITED = ExpectedDeletion(public_key_der(KEY.public_key()), SPEC, NOW + 2, RESULT, MANIFEST)


def envelope(**changes: Any) -> bytes:
    return sign_envelope(make_deletion_statement(DELETION.model_copy(update=changes), RESULT), KEY)


def test_an_honest_statement() -> None:
    statement = verify_deletion(envelope(), AWAITED)
    assert statement.predicate == DELETION
    assert verify_deletion(envelope(), replace(AWAITED, result_sha256=None, manifest_sha256=None))


OTHER: dict[str, tuple[bytes, ExpectedDeletion]] = {
    "another spec": (envelope(), replace(AWAITED, job_spec_sha256="d" * 64)),
    "another result": (envelope(), replace(AWAITED, result_sha256="d" * 64)),
    "another dataset": (envelope(), replace(AWAITED, manifest_sha256="d" * 64)),
    "keys left out": (
        envelope(destroyed={d: NOW for d in DestroyedItem if d != DestroyedItem.IDENTITIES}),
        AWAITED,
    ),
    "destroyed after it was signed": (envelope(signedAt=NOW - 1), AWAITED),
    "from the future": (envelope(), replace(AWAITED, received_at=NOW - 301)),
}


@pytest.mark.parametrize(("signed", "awaited"), OTHER.values(), ids=list(OTHER))
def test_what_does_not_hold_is_refused(signed: bytes, awaited: ExpectedDeletion) -> None:
    with pytest.raises(VerificationError) as caught:
        verify_deletion(signed, awaited)
    assert caught.value.code is ErrorCode.RECEIPT_MISMATCH


def test_another_signature_or_another_statement_is_refused() -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    forged = sign_envelope(make_deletion_statement(DELETION, RESULT), stranger)
    document = json.loads(make_deletion_statement(DELETION, RESULT))
    document["predicateType"] = "https://slsa.dev/provenance/v1"
    receipt = sign_envelope(json.dumps(document).encode(), KEY)
    for bad in (forged, receipt, sign_envelope(b"{}", KEY), b"", b"{"):
        with pytest.raises(VerificationError) as caught:
            verify_deletion(bad, AWAITED)
        assert caught.value.code is ErrorCode.RECEIPT_INVALID
