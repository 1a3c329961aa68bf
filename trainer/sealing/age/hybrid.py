"""Hybrid post-quantum recipients (`age1pq1…`), the default: ML-KEM-768 combined with X25519.

Source: c2sp.org/age, "The mlkem768x25519 recipient type". The file key is encrypted with HPKE (RFC 9180), base
mode, single shot:

    enc ‖ body = SealBase(recipient, info = "age-encryption.org/mlkem768x25519", aad = "", plaintext = file key)

with the KEM MLKEM768-X25519 (identifier 0x647a), the KDF HKDF-SHA256 and the AEAD ChaCha20-Poly1305. The KEM's
shared secret hashes those of both algorithms, so an attacker has to break both.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
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
_ENCAPSULATED_KEY_BYTES: Final = _MLKEM_CIPHERTEXT_BYTES + _X25519_BYTES

_INFO: Final = b"age-encryption.org/mlkem768x25519"
_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


class HybridRecipient:
    """The public key of a hybrid identity.

    Args:
        raw: 1216 bytes: the ML-KEM-768 encapsulation key (1184), then the X25519 u-coordinate (32).

    Raises:
        ValueError: another length, an encapsulation key with coefficients that are not reduced (FIPS 203, section
            7.2), or an X25519 point of low order.
    """

    recipient_type: Final = RecipientType.HYBRID

    def __init__(self, raw: bytes) -> None:
        if len(raw) != RECIPIENT_BYTES:
            raise ValueError(f"{len(raw)} bytes instead of {RECIPIENT_BYTES}")
        self._raw = raw
        # Every private key gives the all-zero secret with a point of low order, so any will do for the check.
        x25519 = X25519PublicKey.from_public_bytes(raw[_MLKEM_PUBLIC_BYTES:])
        if _has_low_order(X25519PrivateKey.generate(), x25519):
            raise ValueError("has a point of low order")
        try:
            mlkem = MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_PUBLIC_BYTES])
        except ValueError:
            raise ValueError("has an invalid ML-KEM-768 key") from None
        self._key = MLKEM768X25519PublicKey(mlkem, x25519)

    def __str__(self) -> str:
        return bech32_encode(RECIPIENT_PREFIX, self._raw)

    def __repr__(self) -> str:
        return f"<HybridRecipient {str(self)[:24]}…>"

    def wrap(self, file_key: bytes) -> Stanza:
        """Encrypts the file key with HPKE; the stanza's argument is the encapsulated key (1120 bytes)."""
        # HPKE returns enc ‖ body. Each call encapsulates anew, so files do not show that they have a recipient in
        # common.
        sealed = _SUITE.encrypt(file_key, self._key, info=_INFO)
        encapsulated_key, body = sealed[:_ENCAPSULATED_KEY_BYTES], sealed[_ENCAPSULATED_KEY_BYTES:]
        return Stanza(RecipientType.HYBRID, (encode_base64(encapsulated_key),), body)


class HybridIdentity:
    """A hybrid private key.

    SHAKE256(seed) yields ML-KEM's seed d ‖ z (64 bytes), then the X25519 scalar (32 bytes).

    Args:
        seed: 32 secret bytes; copied.

    Raises:
        ValueError: another length.
    """

    def __init__(self, seed: bytes | bytearray) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"{len(seed)} bytes instead of {SEED_BYTES}")
        self._seed = bytearray(seed)
        self._expand_seed(self._seed)

    def _expand_seed(self, seed: bytes | bytearray) -> None:
        expanded = hashlib.shake_256(seed).digest(_MLKEM_SEED_BYTES + _X25519_BYTES)
        self._mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:_MLKEM_SEED_BYTES])
        self._x25519 = X25519PrivateKey.from_private_bytes(expanded[_MLKEM_SEED_BYTES:])
        self._key = MLKEM768X25519PrivateKey(self._mlkem, self._x25519)

    def __str__(self) -> str:
        return bech32_encode(IDENTITY_PREFIX, bytes(self._seed)).upper()

    def __repr__(self) -> str:
        return "<HybridIdentity>"

    def recipient(self) -> HybridRecipient:
        """Returns the public key of this identity."""
        return HybridRecipient(
            self._mlkem.public_key().public_bytes_raw()
            + self._x25519.public_key().public_bytes_raw()
        )

    def destroy(self) -> None:
        """Overwrites the seed; afterwards this identity unwraps nothing.

        The expanded bytes and the library's key objects are dropped, but not overwritten.
        """
        wipe(self._seed)
        # New random keys take the place of the old ones, so that the attributes stay valid and hold no secret.
        self._expand_seed(os.urandom(SEED_BYTES))

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Returns the file key from the first stanza that was made for this identity, or None.

        Raises:
            SealingError: HEADER_INVALID: an mlkem768x25519 stanza does not follow the format.
        """
        for stanza in stanzas:
            if stanza.type != RecipientType.HYBRID:
                continue
            encapsulated_key, body = (
                stanza.single_argument(_ENCAPSULATED_KEY_BYTES),
                stanza.wrapped_file_key(),
            )
            # HPKE would report a low-order share as a wrong tag, which here means "for another identity". The
            # format demands an error instead.
            share = X25519PublicKey.from_public_bytes(encapsulated_key[_MLKEM_CIPHERTEXT_BYTES:])
            if _has_low_order(self._x25519, share):
                raise header_invalid("mlkem768x25519 stanza: the share is a point of low order")
            # A stanza does not name its recipient, so whether it is for this identity shows only by the tag.
            with suppress(InvalidTag):
                return _SUITE.decrypt(encapsulated_key + body, self._key, info=_INFO)
        return None


def _has_low_order(private: X25519PrivateKey, public: X25519PublicKey) -> bool:
    """Returns whether the exchange gives the all-zero secret: the point has low order (RFC 7748, section 6)."""
    try:
        private.exchange(public)
    except ValueError:
        return True
    return False
