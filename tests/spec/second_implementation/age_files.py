"""Encryption to one hybrid age recipient, written from c2sp.org/age; stock age libraries cannot do it yet.

Decryption is left to a stock library: the results here are sealed to X25519.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from typing import Final

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PublicKey, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

BECH32: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
MLKEM_BYTES: Final = 1184
ENCAPSULATED_BYTES: Final = 1120
CHUNK_BYTES: Final = 65536


def hkdf(secret: bytes, salt: bytes | None, info: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt, info).derive(secret)


def bech32_data(text: str) -> bytes:
    """Decodes a Bech32 text (BIP 173, without its limit on lengths)."""
    prefix, _, data = text.rpartition("1")
    values = [BECH32.index(character) for character in data]
    checksum = 1
    for value in [*(ord(c) >> 5 for c in prefix), 0, *(ord(c) & 31 for c in prefix), *values]:
        top, checksum = checksum >> 25, (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(
            (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
        ):
            checksum ^= generator if top >> bit & 1 else 0
    assert checksum == 1
    bits = "".join(f"{value:05b}" for value in values[:-6])
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits) - 7, 8))


def unpadded(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")


def encrypt(plaintext: bytes, recipient: str) -> bytes:
    """Returns an age file for a recipient `age1pq1…`."""
    assert recipient.startswith("age1pq1")
    raw = bech32_data(recipient)
    key = MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(raw[:MLKEM_BYTES]),
        X25519PublicKey.from_public_bytes(raw[MLKEM_BYTES:]),
    )
    suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
    file_key = os.urandom(16)
    wrapped = suite.encrypt(file_key, key, info=b"age-encryption.org/mlkem768x25519")
    encapsulated, body = (
        unpadded(wrapped[:ENCAPSULATED_BYTES]),
        unpadded(wrapped[ENCAPSULATED_BYTES:]),
    )
    header = b"age-encryption.org/v1\n-> mlkem768x25519 " + encapsulated + b"\n" + body + b"\n---"
    mac = hmac.digest(hkdf(file_key, None, b"header"), header, hashlib.sha256)
    nonce = os.urandom(16)
    cipher = ChaCha20Poly1305(hkdf(file_key, nonce, b"payload"))
    chunks = [
        plaintext[at : at + CHUNK_BYTES] for at in range(0, max(len(plaintext), 1), CHUNK_BYTES)
    ]
    payload = b"".join(
        cipher.encrypt(number.to_bytes(11, "big") + bytes([number == len(chunks) - 1]), chunk, None)
        for number, chunk in enumerate(chunks)
    )
    return header + b" " + unpadded(mac) + b"\n" + nonce + payload
