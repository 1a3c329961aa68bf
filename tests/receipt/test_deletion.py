"""The deletion statement: what holds is accepted; each thing that does not is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from trainer.errors import ErrorCode, VerificationError
from trainer.receipt.deletion import (
    DeletionPredicate,
    DestroyedItem,
    ExpectedDeletion,
    check_deletion,
    make_deletion_statement,
)

NOW = 1_790_000_000
SPEC, RESULT, MANIFEST = "a" * 64, "b" * 64, "c" * 64
DELETION = DeletionPredicate(
    jobSpecSha256=SPEC,
    datasetManifestSha256=MANIFEST,
    acknowledged=True,
    destroyed=dict.fromkeys(DestroyedItem, NOW),
    signedAt=NOW,
)
AWAITED = ExpectedDeletion(SPEC, NOW + 2, RESULT, MANIFEST)


def payload(**changes: Any) -> bytes:
    return make_deletion_statement(DELETION.model_copy(update=changes), RESULT)


def test_an_honest_statement() -> None:
    statement = check_deletion(payload(), AWAITED)
    assert statement.predicate == DELETION


OTHER: dict[str, tuple[bytes, ExpectedDeletion]] = {
    "another spec": (payload(), replace(AWAITED, job_spec_sha256="d" * 64)),
    "another result": (payload(), replace(AWAITED, result_sha256="d" * 64)),
    "another dataset": (payload(), replace(AWAITED, manifest_sha256="d" * 64)),
    "keys left out": (
        payload(destroyed={d: NOW for d in DestroyedItem if d != DestroyedItem.IDENTITIES}),
        AWAITED,
    ),
    "destroyed after it was signed": (payload(signedAt=NOW - 1), AWAITED),
    "from the future": (payload(), replace(AWAITED, received_at=NOW - 301)),
}


@pytest.mark.parametrize(("signed", "awaited"), OTHER.values(), ids=list(OTHER))
def test_what_does_not_hold_is_refused(signed: bytes, awaited: ExpectedDeletion) -> None:
    with pytest.raises(VerificationError) as caught:
        check_deletion(signed, awaited)
    assert caught.value.code is ErrorCode.RECEIPT_MISMATCH


def test_another_statement_is_refused() -> None:
    document = json.loads(payload())
    document["predicateType"] = "https://slsa.dev/provenance/v1"
    for bad in (json.dumps(document).encode(), b"{}", b"", b"{"):
        with pytest.raises(VerificationError) as caught:
            check_deletion(bad, AWAITED)
        assert caught.value.code is ErrorCode.RECEIPT_INVALID
