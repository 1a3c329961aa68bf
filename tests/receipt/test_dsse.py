"""Envelopes: ours verify with others, and nothing but the exact signed bytes comes out."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import ErrorCode, VerificationError
from trainer.receipt.dsse import (
    PAYLOAD_TYPE,
    pre_authentication_encoding,
    public_key_der,
    sign_envelope,
    verify_envelope,
)

KEY = ec.derive_private_key(12345, ec.SECP256R1())
PUBLIC = public_key_der(KEY.public_key())


@given(st.binary(max_size=300))
def test_round_trip_returns_the_exact_bytes(payload: bytes) -> None:
    assert verify_envelope(sign_envelope(payload, KEY), PUBLIC) == payload


def test_pre_authentication_encoding_is_the_protocols() -> None:
    # the example of the DSSE protocol document
    assert (
        pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_signing_is_deterministic() -> None:
    assert sign_envelope(b"{}", KEY) == sign_envelope(b"{}", KEY)


def test_an_independent_implementation_accepts_it() -> None:
    dsse = pytest.importorskip("securesystemslib.dsse")
    signer = pytest.importorskip("securesystemslib.signer")
    envelope = json.loads(sign_envelope(b'{"a":1}', KEY))
    key = signer.SSlibKey.from_crypto(KEY.public_key(), keyid=envelope["signatures"][0]["keyid"])
    assert dsse.Envelope.from_dict(envelope).verify([key], 1)


def change(**fields: object) -> Callable[[dict[str, object]], object]:
    return lambda envelope: envelope.update(fields)


@pytest.mark.parametrize(
    "attack",
    [
        change(payload=base64.b64encode(b'{"a":2}').decode()),
        change(payload="e30"),  # no padding
        change(payload="!!!!"),
        change(payload="e30\xe9"),
        change(payloadType="application/json"),
        change(signatures=[]),
        change(signatures=[{"keyid": "", "sig": ""}]),
        change(signatures=[{"keyid": "", "sig": "AAAA"}]),
        change(signatures=[{"keyid": "x", "sig": "AA"}, {"keyid": "x", "sig": "AA"}]),
        change(more=1),
        lambda envelope: envelope.pop("payloadType"),
    ],
)
def test_changed_envelopes_are_refused(attack: Callable[[dict[str, object]], object]) -> None:
    envelope = json.loads(sign_envelope(b'{"a":1}', KEY))
    attack(envelope)
    with pytest.raises(VerificationError) as caught:
        verify_envelope(json.dumps(envelope).encode(), PUBLIC)
    assert caught.value.code is ErrorCode.RECEIPT_INVALID


@given(st.data())
def test_any_flipped_bit_is_refused(data: st.DataObject) -> None:
    envelope = bytearray(sign_envelope(b'{"subject":"adapter"}', KEY))
    envelope[data.draw(st.integers(0, len(envelope) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(VerificationError):
        verify_envelope(bytes(envelope), PUBLIC)


def test_another_key_and_other_kinds_of_keys_are_refused() -> None:
    envelope = sign_envelope(b"{}", KEY)
    encoding = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    others = [
        ec.derive_private_key(54321, ec.SECP256R1()).public_key().public_bytes(*encoding),
        ec.derive_private_key(12345, ec.SECP384R1()).public_key().public_bytes(*encoding),
        ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(*encoding),
        b"not a key",
        PUBLIC.replace(
            bytes.fromhex("2a8648ce3d0201"), bytes.fromhex("2a8648ce3d0701")
        ),  # no known algorithm
    ]
    for public_key in others:
        with pytest.raises(VerificationError):
            verify_envelope(envelope, public_key)


def test_a_duplicate_key_in_the_envelope_is_refused() -> None:
    envelope = sign_envelope(b"{}", KEY).decode()
    doubled = envelope.replace('"payload":', '"payload":"e30=","payload":', 1)
    with pytest.raises(VerificationError):
        verify_envelope(doubled.encode(), PUBLIC)
    assert PAYLOAD_TYPE in envelope
