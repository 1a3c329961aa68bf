"""X25519 recipients (`age1…`), for tools that do not read hybrid ones.

Source: c2sp.org/age, "The X25519 recipient type":

    share    = X25519(ephemeral scalar, base point), the stanza's argument
    wrap key = HKDF-SHA256(secret = X25519(ephemeral scalar, recipient), salt = share ‖ recipient,
                           info = "age-encryption.org/v1/X25519")
    body     = ChaCha20-Poly1305(wrap key, nonce = 12 zero bytes, plaintext = file key)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from trainer.sealing.age.bech32 import bech32_encode
from trainer.sealing.age.identity import RecipientType, hkdf_sha256
from trainer.sealing.age.stanza import Stanza, encode_base64, header_invalid
from trainer.sealing.wiping import wipe, wiped

RECIPIENT_PREFIX: Final = "age"
IDENTITY_PREFIX: Final = "age-secret-key-"
KEY_BYTES: Final = 32

_INFO: Final = b"age-encryption.org/v1/X25519"
_ZERO_NONCE: Final = bytes(12)  # safe: the ephemeral key makes a wrap key that encrypts one message


class X25519Recipient:
    """The public key of an X25519 identity.

    Args:
        raw: 32 bytes, a u-coordinate.

    Raises:
        ValueError: another length, or a point of low order: everybody would derive the same wrap key.
    """

    recipient_type: Final = RecipientType.X25519

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise ValueError(f"{len(raw)} bytes instead of {KEY_BYTES}")
        self._raw = raw
        self._key = X25519PublicKey.from_public_bytes(raw)
        _exchange(X25519PrivateKey.generate(), self._key)

    def __str__(self) -> str:
        return bech32_encode(RECIPIENT_PREFIX, self._raw)

    def __repr__(self) -> str:
        return f"<X25519Recipient {self}>"

    def wrap(self, file_key: bytes) -> Stanza:
        """Encrypts the file key under a fresh ephemeral key; the stanza's argument is its public half."""
        ephemeral = X25519PrivateKey.from_private_bytes(os.urandom(KEY_BYTES))
        share = ephemeral.public_key().public_bytes_raw()
        # Points that differ by one of low order give the same secret. With both public keys in the salt, they give
        # different wrap keys.
        with wiped(hkdf_sha256(_exchange(ephemeral, self._key), share + self._raw, _INFO)) as key:
            body = ChaCha20Poly1305(key).encrypt(_ZERO_NONCE, file_key, None)
        return Stanza(RecipientType.X25519, (encode_base64(share),), body)


class X25519Identity:
    """An X25519 private key.

    Args:
        seed: 32 secret bytes, the scalar before clamping; copied.

    Raises:
        ValueError: another length.
    """

    def __init__(self, seed: bytes | bytearray) -> None:
        self._seed = bytearray(seed)
        self._key = X25519PrivateKey.from_private_bytes(seed)
        self._public = self._key.public_key().public_bytes_raw()

    def __str__(self) -> str:
        return bech32_encode(IDENTITY_PREFIX, bytes(self._seed)).upper()

    def __repr__(self) -> str:
        return "<X25519Identity>"

    def recipient(self) -> X25519Recipient:
        """Returns the public key of this identity."""
        return X25519Recipient(self._public)

    def destroy(self) -> None:
        """Overwrites the seed; afterwards this identity unwraps nothing.

        The library's key object is dropped, but not overwritten.
        """
        wipe(self._seed)
        self._key = X25519PrivateKey.generate()

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Returns the file key from the first stanza that was made for this identity, or None.

        Raises:
            SealingError: HEADER_INVALID: an X25519 stanza does not follow the format.
        """
        for stanza in stanzas:
            if stanza.type != RecipientType.X25519:
                continue
            share, body = stanza.single_argument(KEY_BYTES), stanza.wrapped_file_key()
            try:
                secret = _exchange(self._key, X25519PublicKey.from_public_bytes(share))
            except ValueError:
                raise header_invalid("X25519 stanza: the share is a point of low order") from None
            # A stanza does not name its recipient, so whether it is for this identity shows only by the tag.
            with (
                wiped(hkdf_sha256(secret, share + self._public, _INFO)) as key,
                suppress(InvalidTag),
            ):
                return ChaCha20Poly1305(key).decrypt(_ZERO_NONCE, body, None)
        return None


def _exchange(private: X25519PrivateKey, public: X25519PublicKey) -> bytes:
    """Returns the shared secret; a low-order point, which would make it all zeros, raises ValueError."""
    try:
        return private.exchange(public)
    except ValueError:
        raise ValueError("is a point of low order") from None
