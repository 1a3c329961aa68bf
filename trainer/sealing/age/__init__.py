"""The age v1 file format (C2SP `age.md`) on the primitives of `cryptography`.

A file is a header, which wraps a random file key for each recipient, and a payload of 64 KiB chunks under a key
derived from it. Recipients are hybrid post-quantum (`age1pq1…`) unless X25519 (`age1…`) is asked for. The format
authenticates no sender and knows no rollback: the grant inside a bundle does.
"""

from trainer.sealing.age.age_files import decrypt_file, encrypt_file
from trainer.sealing.age.armor import ArmorReader
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
from trainer.sealing.age.stream import ProgressCallback, decrypt, decrypting_reader, encrypt, encrypting_writer
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
    "decrypt",
    "decrypt_file",
    "decrypting_reader",
    "encrypt",
    "encrypt_file",
    "encrypting_writer",
    "generate_identity",
    "identity_from_seed",
    "parse_identity",
    "parse_identity_file",
    "parse_recipient",
]
