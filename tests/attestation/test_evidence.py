"""Evidence and its binding: exact bytes, sizes capped, nothing quoted in errors."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.attestation.claims.binding import gpu_evidence_sha256, report_data
from trainer.attestation.evidence import (
    MAX_EVIDENCE_BYTES,
    DatasetClaims,
    DerivedKeys,
    Evidence,
    FreshGpuEvidence,
    GpuEvidence,
    KeyChain,
    Recipients,
    StatementClaims,
    parse_evidence,
    parse_statement_evidence,
)
from trainer.encoding import canonical_json
from trainer.errors import ErrorCode, VerificationError

World = Any  # conftest.World


def edited(world: World, **changes: object) -> bytes:
    return canonical_json(json.loads(world.evidence().canonical()) | changes)


def test_evidence_travels_unchanged(world: World) -> None:
    evidence = world.evidence()
    assert parse_evidence(evidence.canonical()) == evidence


def test_report_data_by_the_book(world: World) -> None:
    text = canonical_json(json.loads(world.evidence().canonical())["claims"])
    digest = hashlib.sha512(b"confidential-trainer/report-data/v1\0" + text).digest()
    assert report_data(world.claims) == digest


RECEIPT_KEY = (
    "3059301306072a8648ce3d020106082a8648ce3d030107034200048e533b6fa0bf7b4625bb30667c01fb607ef9f8b8a80fef5b3006"
    "28703187b2a373eb1dbde03318366d069f83a6f5900053c73633cb041b21c55e1a86c1f400b4"
)


def test_report_data_of_the_examples_in_the_specification() -> None:
    dataset = DatasetClaims(
        version=1,
        purpose="dataset",
        nonce="01" * 32,
        job_spec_sha256="ab" * 32,
        recipients=Recipients(derived="age1" + "q" * 58, instance="age1" + "p" * 58),
        derived_keys=DerivedKeys(recipient="02" + "ab" * 32, possession="03" + "cd" * 32),
        receipt_key=RECEIPT_KEY,
        tls_key=None,
        gpu_evidence_sha256=None,
        sandbox={"landlock": True},
        software={"trainer": "0.1.0"},
        issued_at=1_790_000_000,
        expires_at=1_790_003_600,
    )
    receipt = StatementClaims(
        version=1,
        purpose="receipt",
        job_spec_sha256="ab" * 32,
        statement_sha256="cd" * 32,
        receipt_key=RECEIPT_KEY,
        issued_at=1_790_003_000,
    )
    assert report_data(dataset).hex() == (
        "ba9b6e2c3761230204c9206459dc542cc7b45ba36be0870bd2bdcbf848bde40f"
        "dfa58cdee48b33c78b31aafd4cf06670eae3f08fde54aed5352f57bfa0168170"
    )
    assert report_data(receipt).hex() == (
        "0d5588fa383a89e9b4ebf616fec80c5fc501723d5c075981d284bcd8082ebd4d"
        "46294220828cf45d7dbb15846766cc14e670e61fde3e1e18b20e35f1c188a6ba"
    )
    example = GpuEvidence(boot='{"claims": []}\n')
    assert (
        gpu_evidence_sha256(example)
        == "8f82ecb471311ee08765bb2d62a3831627e7f803dda224921b2f242cb17f634b"
    )


@given(st.sampled_from(sorted(DatasetClaims.model_fields)))
def test_every_claim_is_bound(name: str) -> None:
    document = {
        "version": 1,
        "purpose": "dataset",
        "nonce": "01" * 32,
        "job_spec_sha256": "02" * 32,
        "recipients": {"derived": "age1" + "q" * 58, "instance": "age1" + "p" * 58},
        "derived_keys": {"recipient": "02" * 33, "possession": "03" * 33},
        "receipt_key": "03" * 91,
        "tls_key": None,
        "gpu_evidence_sha256": None,
        "sandbox": {},
        "software": {},
        "issued_at": 1,
        "expires_at": 2,
    }
    claims = DatasetClaims.model_validate_json(json.dumps(document))
    swapped = Recipients(derived=claims.recipients.instance, instance=claims.recipients.derived)
    other = {
        "version": 2,
        "recipients": swapped,
        "derived_keys": DerivedKeys(recipient="03" * 33, possession="02" * 33),
        "sandbox": {"seccomp": True},
        "software": {"trainer": "1"},
        "issued_at": 0,
        "expires_at": 3,
    }
    changed = claims.model_copy(update={name: other.get(name, "04" * 32)})
    assert report_data(changed) != report_data(claims)


def test_gpu_evidence_has_a_digest_only_where_there_is_some() -> None:
    assert gpu_evidence_sha256(GpuEvidence()) is None
    boot, fresh = (
        GpuEvidence(boot="{}"),
        GpuEvidence(fresh=(FreshGpuEvidence(report="", certificate_chain=""),)),
    )
    assert gpu_evidence_sha256(boot) != gpu_evidence_sha256(fresh)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quote": ""}, "quote"),
        ({"quote": "0"}, "quote"),
        ({"quote": "AA"}, "quote"),
        ({"quote": "00" * 65537}, "quote"),
        ({"quote": "00\n"}, "quote"),
        ({"compose_hash": "00" * 32}, "compose_hash"),
        ({"claims": {"purpose": "other"}}, "claims"),
        ({"more": 1}, "more"),
        ({"possession": None}, "possession"),
        ({"key_chain": []}, "key_chain"),
        ({"key_chain": {"app": "00" * 65, "recipient": "00" * 65}}, "key_chain.possession"),
        (
            {"key_chain": {"app": "", "recipient": "00" * 65, "possession": "00" * 65}},
            "key_chain.app",
        ),
        (
            {"key_chain": dict.fromkeys([*KeyChain.model_fields, "path"], "00" * 65)},
            "key_chain.path",
        ),
        ({"app_compose": "x" * ((1 << 20) + 1)}, "app_compose"),
        (
            {"gpu": {"boot": "", "fresh": [{"report": "0", "certificate_chain": ""}]}},
            "gpu.fresh.0.report",
        ),
    ],
)
def test_what_is_no_evidence_is_refused_by_name(
    world: World, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(VerificationError, match=words) as refused:
        parse_evidence(edited(world, **changes))
    assert refused.value.code is ErrorCode.EVIDENCE_INVALID


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b'{"claims": 1, "claims": 2}', "twice"),
        (b" " * (MAX_EVIDENCE_BYTES + 1), "too large"),
    ],
)
def test_bytes_that_are_no_document_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(VerificationError, match=words):
        parse_evidence(data)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_quietly(data: bytes) -> None:
    with pytest.raises(VerificationError):
        parse_evidence(data)


def test_the_largest_document_that_fits_is_read(world: World) -> None:
    evidence = world.evidence()
    padded = evidence.canonical().ljust(MAX_EVIDENCE_BYTES)
    assert isinstance(parse_evidence(padded), Evidence)


@pytest.mark.parametrize(
    "name", ["app_compose", "compose_hash", "event_log", "gpu", "key_chain", "vm_config"]
)
def test_evidence_over_a_statement_shows_nothing_that_is_not_judged(
    world: World, name: str
) -> None:
    evidence = world.receipt_evidence()
    assert parse_statement_evidence(evidence.canonical()) == evidence
    document = json.loads(evidence.canonical()) | {
        name: json.loads(world.evidence().canonical())[name]
    }
    with pytest.raises(VerificationError, match=name) as refused:
        parse_statement_evidence(canonical_json(document))
    assert refused.value.code is ErrorCode.EVIDENCE_INVALID


def test_evidence_for_one_use_is_none_for_the_other(world: World) -> None:
    document = json.loads(world.receipt_evidence().canonical())
    with pytest.raises(VerificationError, match="claims"):
        parse_statement_evidence(
            canonical_json(
                document | {"claims": json.loads(world.evidence().canonical())["claims"]}
            )
        )
    with pytest.raises(VerificationError, match="claims"):
        parse_evidence(edited(world, claims=document["claims"]))
