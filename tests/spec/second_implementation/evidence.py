"""Evidence of a job and of its statements: SPEC.md, "Claims" to "Events", "Receipt" and "Deletion statement".

Whose signature a quote bears is Intel's format, not ours, and no part of this: what is read is what it measures.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tests.spec.second_implementation.bundles import jcs, parse_exact, sha256

RUNTIME_EVENT: Final = 0x08000001
BODY: Final = {4: 48, 5: 54}
"""Quote version → where the TD report begins (Intel, TDX DCAP Quoting Library API)."""
MRTD: Final = 136
RTMR0: Final = 328
REPORT_DATA: Final = 520
"""Offsets in it."""


@dataclass(frozen=True)
class Quote:
    """What a TDX quote measures, in hex."""

    registers: tuple[str, ...]
    report_data: str


def read_quote(text: str) -> Quote:
    raw = bytes.fromhex(text)
    report = raw[BODY[int.from_bytes(raw[:2], "little")] :]
    starts = (MRTD, *(RTMR0 + 48 * number for number in range(4)))
    return Quote(
        tuple(report[at : at + 48].hex() for at in starts),
        report[REPORT_DATA : REPORT_DATA + 64].hex(),
    )


def report_data(claims: Mapping[str, Any]) -> str:
    return hashlib.sha512(b"confidential-trainer/report-data/v1\0" + jcs(claims)).hexdigest()


def replay(events: list[dict[str, Any]]) -> str:
    """Returns RTMR3 after the runtime events of a log."""
    register = bytes(48)
    for event in events:
        kind, name, payload = event["event_type"], event["event"], event["event_payload"]
        if kind != RUNTIME_EVENT:
            continue
        if event.get("version", 1) == 1:
            hashed = (
                kind.to_bytes(4, "little") + b":" + name.encode() + b":" + bytes.fromhex(payload)
            )
        else:
            hashed = jcs({"name": name, "payload": payload, "type": kind})
        register = hashlib.sha384(register + hashlib.sha384(hashed).digest()).digest()
    return register.hex()


def verify_evidence(
    evidence: Mapping[str, Any], nonce: str, job_spec_sha256: str, tls_key: bytes
) -> Quote:
    """Checks evidence from a nonce to the keys, of a VM without a key service and without GPUs."""
    claims, quote = evidence["claims"], read_quote(evidence["quote"])
    assert quote.report_data == report_data(claims)
    assert (claims["version"], claims["purpose"], claims["nonce"]) == (1, "dataset", nonce)
    assert claims["job_spec_sha256"] == job_spec_sha256
    assert claims["tls_key"] == tls_key.hex()
    assert claims["receipt_key"] != claims["tls_key"]
    assert claims["issued_at"] - 300 <= time.time() < claims["expires_at"]
    assert claims["recipients"]["derived"] != claims["recipients"]["instance"]
    assert claims["gpu_evidence_sha256"] is None
    assert evidence["gpu"] == {"boot": "", "fresh": []}
    assert evidence["key_chain"] is None

    events = json.loads(evidence["event_log"])
    assert quote.registers[4] == replay(events)
    measured = {
        event["event"]: event["event_payload"]
        for event in events
        if event["event_type"] == RUNTIME_EVENT
    }
    assert measured["compose-hash"] == sha256(evidence["app_compose"].encode())
    assert evidence["compose_hash"] == "sha256:" + measured["compose-hash"]
    assert json.loads(bytes.fromhex(measured["key-provider"]))["name"] == "none"
    verify_possession(evidence, quote)
    return quote


def verify_possession(evidence: Mapping[str, Any], quote: Quote) -> None:
    point = bytes.fromhex(evidence["claims"]["derived_keys"]["possession"])
    signature = bytes.fromhex(evidence["possession"])
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    signed = b"confidential-trainer/key-possession/v1\0" + bytes.fromhex(quote.report_data)
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), point)
    key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))


@dataclass(frozen=True)
class Signed:
    """A statement whose envelope and evidence hold."""

    statement: dict[str, Any]
    issued_at: int


def verify_statement(
    envelope: Mapping[str, Any],
    evidence: Mapping[str, Any],
    purpose: str,
    appraised: Mapping[str, Any],
) -> Signed:
    """Checks DSSE envelope and evidence over a statement against the evidence that the dataset was sealed to."""
    claims, quote = evidence["claims"], read_quote(evidence["quote"])
    assert quote.registers == read_quote(appraised["quote"]).registers
    assert quote.report_data == report_data(claims)
    assert (claims["version"], claims["purpose"]) == (1, purpose)
    assert claims["job_spec_sha256"] == appraised["claims"]["job_spec_sha256"]
    payload = base64.b64decode(envelope["payload"], validate=True)
    assert claims["statement_sha256"] == sha256(payload)

    der = bytes.fromhex(claims["receipt_key"])
    (signature,) = envelope["signatures"]
    assert signature["keyid"] == sha256(der)
    kind = envelope["payloadType"]
    assert kind == "application/vnd.in-toto+json"
    encoded = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    key = load_der_public_key(der)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(base64.b64decode(signature["sig"], validate=True), encoded, ec.ECDSA(SHA256()))
    statement = parse_exact(payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    return Signed(statement, claims["issued_at"])


def digests(resources: list[dict[str, Any]]) -> dict[str, str]:
    found = {resource["name"]: resource["digest"]["sha256"] for resource in resources}
    assert len(found) == len(resources)
    return found
