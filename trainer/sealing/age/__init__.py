"""The age v1 file format (age-encryption.org/v1, specified at c2sp.org/age) on the primitives of `cryptography`.

    identity = generate_identity()                               # AGE-SECRET-KEY-PQ-1…
    encrypt_file(dataset, sealed, [identity.recipient()])        # to age1pq1…
    decrypt_file(sealed, dataset_again, [identity])

A file is a text header, which wraps a random file key for each recipient, and a binary payload:

    age-encryption.org/v1
    -> mlkem768x25519 ENC      a stanza: the file key, encrypted to one recipient
    BODY
    --- MAC                    HMAC-SHA256 over the header up to and including "---"
    NONCE CHUNK CHUNK …        16 bytes, then ChaCha20-Poly1305 chunks of 64 KiB plaintext each

    file key    = 16 random bytes
    MAC key     = HKDF-SHA256(secret = file key, salt = "",    info = "header")
    payload key = HKDF-SHA256(secret = file key, salt = NONCE, info = "payload")

Recipients are hybrid post-quantum (`age1pq1…`) by default, or X25519 (`age1…`). The format authenticates no sender
and does not detect that an older file was put in place of a newer one; the grant in a bundle and the HMAC in a
checkpoint do that.
"""

from trainer.sealing.age.age_files import decrypt_file, encrypt_file
from trainer.sealing.age.armor import ArmorReader
from trainer.sealing.age.header import count_stanzas, new_file_key, rewrap_header, wrap_file_key
from trainer.sealing.age.hybrid import HybridIdentity, HybridRecipient
from trainer.sealing.age.identity import Identity, Recipient, RecipientType
from trainer.sealing.age.keys import (
    generate_identity,
    identity_from_seed,
    parse_identity,
    parse_identity_file,
    parse_recipient,
)
from trainer.sealing.age.passphrase import ScryptIdentity, ScryptRecipient
from trainer.sealing.age.stanza import Stanza
from trainer.sealing.age.stream import (
    ProgressCallback,
    decrypt,
    decrypting_reader,
    encrypt,
    encrypting_writer,
)
from trainer.sealing.age.x25519 import X25519Identity, X25519Recipient

__all__ = [
    "ArmorReader",
    "HybridIdentity",
    "HybridRecipient",
    "Identity",
    "ProgressCallback",
    "Recipient",
    "RecipientType",
    "ScryptIdentity",
    "ScryptRecipient",
    "Stanza",
    "X25519Identity",
    "X25519Recipient",
    "count_stanzas",
    "decrypt",
    "decrypt_file",
    "decrypting_reader",
    "encrypt",
    "encrypt_file",
    "encrypting_writer",
    "generate_identity",
    "identity_from_seed",
    "new_file_key",
    "parse_identity",
    "parse_identity_file",
    "parse_recipient",
    "rewrap_header",
    "wrap_file_key",
]
