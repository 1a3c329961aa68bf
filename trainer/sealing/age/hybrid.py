"""Hybrid post-quantum recipients (`age1pq1…`): ML-KEM-768 and X25519 together, the default.

Source: C2SP `age.md`, "The mlkem768x25519 recipient type": HPKE SealBase (RFC 9180) with the KEM
MLKEM768-X25519 (0x647a), HKDF-SHA256 and ChaCha20-Poly1305. Breaking it takes breaking both.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from trainer.sealing.age.bech32 import bech32_encode
from trainer.sealing.age.identity import RecipientType
from trainer.sealing.age.stanza import Stanza, encode_base64, header_invalid
from trainer.sealing.wiping import wipe

RECIPIENT_PREFIX: Final = "age1pq"
IDENTITY_PREFIX: Final = "age-secret-key-pq-"
SEED_BYTES: Final = 32

_MLKEM_PUBLIC_BYTES: Final = 1184
_MLKEM_CIPHERTEXT_BYTES: Final = 1088
_MLKEM_SEED_BYTES: Final = 64
_X25519_BYTES: Final = 32
RECIPIENT_BYTES: Final = _MLKEM_PUBLIC_BYTES + _X25519_BYTES
_ENC_BYTES: Final = _MLKEM_CIPHERTEXT_BYTES + _X25519_BYTES

_INFO: Final = b"age-encryption.org/mlkem768x25519"
_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


class HybridRecipient:
    """Public half of a hybrid identity.

    Args:
        raw: 1216 bytes: ML-KEM-768 encapsulation key (1184), then X25519 u-coordinate (32).

    Raises:
        ValueError: another length, an encapsulation key that is not reduced, or a low-order point.
    """

    recipient_type: Final = RecipientType.HYBRID

    def __init__(self, raw: bytes) -> None:
        if len(raw) != RECIPIENT_BYTES:
            raise ValueError(f"{len(raw)} bytes instead of {RECIPIENT_BYTES}")
        self._raw = raw
        x25519 = X25519PublicKey.from_public_bytes(raw[_MLKEM_PUBLIC_BYTES:])
        if _low_order(X25519PrivateKey.generate(), x25519):
            raise ValueError("has a point of low order")
        self._key = MLKEM768X25519PublicKey(_mlkem_public(raw[:_MLKEM_PUBLIC_BYTES]), x25519)

    def __str__(self) -> str:
        return bech32_encode(RECIPIENT_PREFIX, self._raw)

    def __repr__(self) -> str:
        return f"<HybridRecipient {str(self)[:24]}…>"

    def wrap(self, file_key: bytes) -> Stanza:
        """Wrap with HPKE; the stanza's argument is the encapsulated key (1120 bytes)."""
        sealed = _SUITE.encrypt(file_key, self._key, info=_INFO)
        return Stanza(RecipientType.HYBRID, (encode_base64(sealed[:_ENC_BYTES]),), sealed[_ENC_BYTES:])


class HybridIdentity:
    """Hybrid private key, expanded from a seed by SHAKE256 into ML-KEM's d‖z (64 bytes) and X25519's scalar (32).

    Args:
        seed: 32 secret bytes.

    Raises:
        ValueError: another length.
    """

    def __init__(self, seed: bytes | bytearray) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"{len(seed)} bytes instead of {SEED_BYTES}")
        self._seed = bytearray(seed)
        self._expand(self._seed)

    def _expand(self, seed: bytes | bytearray) -> None:
        expanded = hashlib.shake_256(seed).digest(_MLKEM_SEED_BYTES + _X25519_BYTES)
        self._mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:_MLKEM_SEED_BYTES])
        self._x25519 = X25519PrivateKey.from_private_bytes(expanded[_MLKEM_SEED_BYTES:])
        self._key = MLKEM768X25519PrivateKey(self._mlkem, self._x25519)

    def __str__(self) -> str:
        return bech32_encode(IDENTITY_PREFIX, bytes(self._seed)).upper()

    def __repr__(self) -> str:
        return "<HybridIdentity>"

    def recipient(self) -> HybridRecipient:
        """The public half."""
        return HybridRecipient(
            self._mlkem.public_key().public_bytes_raw() + self._x25519.public_key().public_bytes_raw()
        )

    def destroy(self) -> None:
        """See `Identity`; what the libraries and `_expand` made of the seed is dropped, not overwritten."""
        wipe(self._seed)
        self._expand(os.urandom(SEED_BYTES))  # keys that nobody knows take their place

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """The file key, if one of the stanzas was made for this identity; see `Identity`."""
        for stanza in stanzas:
            if stanza.type == RecipientType.HYBRID and (file_key := self._open(stanza)) is not None:
                return file_key
        return None

    def _open(self, stanza: Stanza) -> bytes | None:
        enc, body = stanza.single_argument(_ENC_BYTES), stanza.wrapped_file_key()
        # HPKE reports a low-order share as a wrong tag, which would read as "not for this identity".
        if _low_order(self._x25519, X25519PublicKey.from_public_bytes(enc[_MLKEM_CIPHERTEXT_BYTES:])):
            raise header_invalid("mlkem768x25519 stanza: the share is a point of low order")
        try:
            return _SUITE.decrypt(enc + body, self._key, info=_INFO)
        except InvalidTag:
            return None


def _mlkem_public(raw: bytes) -> MLKEM768PublicKey:
    try:
        return MLKEM768PublicKey.from_public_bytes(raw)
    except ValueError:
        raise ValueError("has an invalid ML-KEM-768 key") from None


def _low_order(private: X25519PrivateKey, public: X25519PublicKey) -> bool:
    try:
        private.exchange(public)
    except ValueError:  # all-zero shared secret
        return True
    return False
