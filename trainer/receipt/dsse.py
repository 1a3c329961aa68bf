"""DSSE envelopes (github.com/secure-systems-lab/dsse, protocol.md and envelope.md, v1.0) with one ECDSA signature.

    envelope  = {"payload": base64(payload), "payloadType": type,
                 "signatures": [{"keyid": …, "sig": base64(signature)}]}
    signature = ECDSA P-256 with SHA-256 over PAE(type, payload)

The signature is over the payload's bytes and not over a parsed form. `verify_envelope` returns exactly these
bytes, so that callers parse only what was signed.
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
    """One signature of an envelope; `keyid` is a hint that is not authenticated, and chooses no key."""

    keyid: Annotated[str, Field(max_length=128)]
    sig: Annotated[str, Field(max_length=1024)]


class Envelope(Strict):
    """A DSSE envelope in JSON; `payload` and `sig` are standard base64."""

    payload: str
    payloadType: str  # noqa: N815 -- the format's spelling
    signatures: Annotated[tuple[Signature, ...], Field(min_length=1, max_length=1)]


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Returns PAE(type, payload), the bytes that are signed (DSSE protocol, "Signature Definition").

        PAE(type, payload) = "DSSEv1" SP LEN(type) SP type SP LEN(payload) SP payload

    `LEN` is the length in bytes as ASCII decimal. With the lengths, no two pairs of type and payload have the same
    encoding, so a signature over one kind of payload cannot be passed off as one over another.
    """
    type_bytes = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(type_bytes), type_bytes, len(payload), payload)


def public_key_der(key: ec.EllipticCurvePublicKey) -> bytes:
    """Returns the DER SubjectPublicKeyInfo of a public key."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def sign_envelope(payload: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Signs an in-toto statement; returns the envelope as canonical JSON (RFC 8785).

    The nonce of the signature is derived from key and message (RFC 6979). A nonce from a random number generator
    that has little entropy, as after a VM's boot, could reveal the key.
    """
    message = pre_authentication_encoding(PAYLOAD_TYPE, payload)
    signature = key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [
            {
                "keyid": sha256_hex(public_key_der(key.public_key())),
                "sig": base64.b64encode(signature).decode(),
            }
        ],
    }
    return canonical_json(envelope)


def verify_envelope(envelope: bytes, public_key: bytes) -> bytes:
    """Verifies an envelope and returns its payload.

    1. The envelope is JSON without duplicate keys, with exactly one signature, canonical base64 and the payload
       type of in-toto.
    2. `public_key` is an EC P-256 key.
    3. The signature is valid over PAE(payload type, payload), and `keyid` is the SHA-256 of `public_key`.

    Args:
        envelope: the envelope's JSON.
        public_key: DER SubjectPublicKeyInfo of the receipt key in attested claims.

    Raises:
        VerificationError: RECEIPT_INVALID: one of these does not hold.
    """
    parsed = parse_envelope(envelope)
    payload = _decode_base64(parsed.payload)
    if parsed.payloadType != PAYLOAD_TYPE:
        raise _receipt_invalid(
            "wrong payload type", expected=PAYLOAD_TYPE, found=parsed.payloadType[:80]
        )
    key = load_public_key(public_key)
    message = pre_authentication_encoding(PAYLOAD_TYPE, payload)
    try:
        key.verify(_decode_base64(parsed.signatures[0].sig), message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise _receipt_invalid("the signature is not by the attested receipt key") from None
    # One signed payload has one envelope: the hint is that of the key, and no place for anything else.
    if parsed.signatures[0].keyid != sha256_hex(public_key):
        raise _receipt_invalid("the key id is not that of the receipt key")
    return payload


def parse_envelope(envelope: bytes) -> Envelope:
    """Parses the JSON of an envelope, without a look at its signature.

    Raises:
        VerificationError: RECEIPT_INVALID.
    """
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise _receipt_invalid(
            "too large", expected=f"at most {MAX_ENVELOPE_BYTES} bytes", found=len(envelope)
        )
    try:
        parse_json(envelope)
        return Envelope.model_validate_json(envelope)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _receipt_invalid(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except ValueError as error:
        raise _receipt_invalid(str(error)) from None


def _decode_base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:  # binascii.Error, or a ValueError for characters that are not ASCII
        raise _receipt_invalid("not standard base64") from None
    # The decoder ignores the bits after the last byte: one signed payload would have several envelopes.
    if base64.b64encode(data).decode() != text:
        raise _receipt_invalid("base64 is not canonical")
    return data


def load_public_key(der: bytes) -> ec.EllipticCurvePublicKey:
    """Returns the receipt key from its DER SubjectPublicKeyInfo.

    Raises:
        VerificationError: RECEIPT_INVALID: not an EC P-256 key.
    """
    try:
        key = serialization.load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        raise _receipt_invalid("the attested receipt key is not a public key") from None
    # The key's type decides the algorithm, never the envelope: DSSE names none, so nobody can choose a weaker one.
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _receipt_invalid(
            "the attested receipt key has the wrong type",
            expected="EC P-256",
            found=type(key).__name__,
        )
    return key


def _receipt_invalid(
    message: str, *, expected: object = None, found: object = None
) -> VerificationError:
    return VerificationError(
        ErrorCode.RECEIPT_INVALID,
        f"receipt: {message}",
        expected=expected,
        found=found,
        hint="do not use this result; pull it again, and if it stays so, ask the operator for a new run",
    )
