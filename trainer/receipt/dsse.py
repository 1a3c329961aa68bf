"""DSSE envelopes (secure-systems-lab/dsse, protocol v1.0.0) with one ECDSA P-256 / SHA-256 signature.

Checks are numbered in `verify_envelope`; the payload is returned only after all of them, as the very bytes that
were signed, so that nobody parses anything unsigned.
"""

from __future__ import annotations

import base64
from typing import Annotated, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field, ValidationError

from trainer.encoding import canonical_json, parse_json, sha256_hex
from trainer.errors import ErrorCode, VerificationError
from trainer.models import Strict

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
MAX_ENVELOPE_BYTES: Final = 16 << 20


class Signature(Strict):
    """One signature of an envelope; `keyid` is only a hint and decides nothing."""

    keyid: Annotated[str, Field(max_length=128)]
    sig: Annotated[str, Field(max_length=1024)]


class Envelope(Strict):
    """DSSE JSON envelope; `payload` and `sig` are standard base64."""

    payload: str
    payloadType: str  # noqa: N815 -- the format's spelling
    signatures: Annotated[tuple[Signature, ...], Field(min_length=1, max_length=1)]


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """PAE of the DSSE protocol: what is signed; lengths make it injective."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def public_key_der(key: ec.EllipticCurvePublicKey) -> bytes:
    """DER SubjectPublicKeyInfo of a public key."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def sign_envelope(payload: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Sign an in-toto statement; returns the envelope as canonical JSON.

    Deterministic ECDSA (RFC 6979): the same statement and key give the same bytes, and no weak random number of
    a young VM can give the key away.
    """
    message = pre_authentication_encoding(PAYLOAD_TYPE, payload)
    signature = key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [
            {"keyid": sha256_hex(public_key_der(key.public_key())), "sig": base64.b64encode(signature).decode()}
        ],
    }
    return canonical_json(envelope)


def verify_envelope(envelope: bytes, public_key: bytes) -> bytes:
    """Return the payload of an envelope that `public_key` signed.

    1. form: strict JSON, exactly one signature, canonical base64, the in-toto payload type;
    2. key: an EC P-256 public key;
    3. signature: ECDSA over the pre-authentication encoding of the exact payload bytes.

    Args:
        envelope: JSON bytes of the envelope.
        public_key: DER SubjectPublicKeyInfo that the attested claims named.

    Raises:
        VerificationError: any of the checks failed.
    """
    parsed = _parse(envelope)
    payload = _decode(parsed.payload)  # 1
    if parsed.payloadType != PAYLOAD_TYPE:
        raise _invalid("wrong payload type", expected=PAYLOAD_TYPE, found=parsed.payloadType[:80])
    key = _load(public_key)  # 2
    message = pre_authentication_encoding(PAYLOAD_TYPE, payload)
    try:
        key.verify(_decode(parsed.signatures[0].sig), message, ec.ECDSA(hashes.SHA256()))  # 3
    except InvalidSignature:
        raise _invalid("the signature is not by the attested receipt key") from None
    return payload


def _parse(envelope: bytes) -> Envelope:
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise _invalid("too large", expected=f"at most {MAX_ENVELOPE_BYTES} bytes", found=len(envelope))
    try:
        parse_json(envelope)
        return Envelope.model_validate_json(envelope)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _invalid(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except ValueError as error:
        raise _invalid(str(error)) from None


def _decode(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:  # binascii.Error is one; text beyond ASCII gives another
        raise _invalid("not standard base64") from None
    if base64.b64encode(data).decode() != text:
        raise _invalid("base64 is not canonical")
    return data


def _load(der: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        raise _invalid("the attested receipt key is not a public key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _invalid(
            "the attested receipt key has the wrong type", expected="EC P-256", found=type(key).__name__
        )
    return key


def _invalid(message: str, *, expected: object = None, found: object = None) -> VerificationError:
    return VerificationError(
        ErrorCode.RECEIPT_INVALID,
        f"receipt: {message}",
        expected=expected,
        found=found,
        hint="do not use this result; pull it again, and if it stays so, ask the operator for a new run",
    )
