"""The provider's identity file: identities in age's format, with a provider key on a comment line.

With a passphrase, all of it is inside an age file with one `scrypt` stanza, as `age -p` makes it. `age -i` reads
either form.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.errors import ErrorCode, SealingError, UsageError
from trainer.provider.local_files import read_small_file, write_private_file
from trainer.provider_keys import ProviderKey, generate_provider_key, parse_provider_key
from trainer.sealing.age import (
    Identity,
    ScryptIdentity,
    ScryptRecipient,
    decrypt,
    encrypt,
    generate_identity,
    parse_identity_file,
)

_SECRET_LINE: Final = "# provider secret: "  # noqa: S105 -- the beginning of a line
_AGE_BEGINNINGS: Final = (b"age-encryption.org/", b"-----BEGIN AGE")

AskPassphrase = Callable[[Path], bytes]
"""Asks the user for the passphrase of a file."""


@dataclass(frozen=True)
class ProviderIdentity:
    """The content of an identity file.

    Args:
        identities: open what was sealed to the provider.
        provider_key: signs what the provider sends; None if `trainer keygen` did not make the file.
    """

    identities: tuple[Identity, ...]
    provider_key: ProviderKey | None


def create_identity(
    path: Path, *, hybrid: bool = True, passphrase: bytes | None = None
) -> ProviderIdentity:
    """Writes a new identity and a new provider key, mode 0600; returns both.

    age skips lines that begin with `#`, and refuses any other that is no identity.

    Args:
        path: the file.
        hybrid: whether the identity is a post-quantum hybrid (ML-KEM-768 with X25519) or X25519 alone.
        passphrase: encrypts the file; None leaves it readable for whoever can read files of this user.

    Raises:
        UsageError: the file exists; an identity is never overwritten.
    """
    identity, key = generate_identity(hybrid=hybrid), generate_provider_key()
    lines = (
        f"# created: {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}",
        f"# public key: {identity.recipient()}",
        f"# provider key: {key.public}",
        f"{_SECRET_LINE}{key}",
        f"{identity}",
    )
    text = "".join(f"{line}\n" for line in lines).encode()
    if passphrase is not None:
        encrypted = io.BytesIO()
        encrypt(io.BytesIO(text), encrypted, [ScryptRecipient(passphrase)])
        text = encrypted.getvalue()
    write_private_file(path, text)
    return ProviderIdentity((identity,), key)


def read_identity_file(path: Path, ask: AskPassphrase | None = None) -> ProviderIdentity:
    """Reads a file that `trainer keygen`, `age-keygen` or `age -p` made.

    Args:
        path: the file.
        ask: asks for the passphrase of an encrypted file; None if nobody can be asked.

    Raises:
        UsageError: the file does not exist, has no identity, several provider keys or something else in the place
            of one; it is encrypted, and the passphrase is wrong or nobody can be asked.
    """
    data = read_small_file(path, "identity file")
    if data.lstrip().startswith(_AGE_BEGINNINGS):
        data = _decrypt(data, path, ask)
    text = data.decode("utf-8", "replace")
    found = [
        line.removeprefix(_SECRET_LINE)
        for line in text.splitlines()
        if line.startswith(_SECRET_LINE)
    ]
    if len(found) > 1:
        raise UsageError(
            ErrorCode.IDENTITY_INVALID,
            f"the identity file {path}",
            expected="one provider key",
            found=len(found),
        )
    key = parse_provider_key(found[0].strip()) if found else None
    return ProviderIdentity(parse_identity_file(text), key)


def _decrypt(data: bytes, path: Path, ask: AskPassphrase | None) -> bytes:
    if ask is None:
        raise UsageError(
            ErrorCode.IDENTITY_INVALID,
            f"the identity file {path} is encrypted",
            hint="there is nobody to ask",
        )
    plain = io.BytesIO()
    try:
        decrypt(io.BytesIO(data), plain, [ScryptIdentity(ask(path))])
    except SealingError as error:
        raise UsageError(
            ErrorCode.IDENTITY_INVALID,
            f"the identity file {path} could not be decrypted",
            expected="its passphrase, and an unchanged file",
            found=error.code.value,
        ) from None
    return plain.getvalue()
