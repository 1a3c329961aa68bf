"""Fixtures of the sealing tests: keys, plaintext, and the two ways to decrypt."""

import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from trainer.sealing.age import (
    Identity,
    Recipient,
    decrypt,
    decrypt_file,
    encrypt,
    encrypt_file,
    identity_from_seed,
)
from trainer.sealing.archive import member_header
from trainer.sealing.bundle import Grant

Encryptor = Callable[[bytes, Sequence[Recipient]], bytes]
Decryptor = Callable[[bytes, Sequence[Identity]], bytes]


@pytest.fixture(scope="session")
def hybrid() -> Identity:
    return identity_from_seed(bytes(range(32)))


@pytest.fixture(scope="session")
def x25519() -> Identity:
    return identity_from_seed(bytes(range(32)), hybrid=False)


@pytest.fixture(scope="session")
def stranger() -> Identity:
    return identity_from_seed(bytes(32))


@pytest.fixture(scope="session")
def plaintext() -> Callable[[int], bytes]:
    """Bytes that do not repeat, the same ones each time."""
    return lambda size: random.Random(size).randbytes(size)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for properties, which may not use `tmp_path`."""
    return tmp_path_factory.mktemp("sealing")


@pytest.fixture(scope="session", params=["stream", "file"])
def encryptor(request: pytest.FixtureRequest, work: Path) -> Encryptor:
    def by_stream(data: bytes, recipients: Sequence[Recipient]) -> bytes:
        target = io.BytesIO()
        encrypt(io.BytesIO(data), target, recipients)
        return target.getvalue()

    def by_file(data: bytes, recipients: Sequence[Recipient]) -> bytes:
        (work / "plain").write_bytes(data)
        encrypt_file(work / "plain", work / "sealed", recipients)
        return (work / "sealed").read_bytes()

    return by_stream if request.param == "stream" else by_file


@pytest.fixture(scope="session", params=["stream", "file"])
def decryptor(request: pytest.FixtureRequest, work: Path) -> Decryptor:
    def by_stream(data: bytes, identities: Sequence[Identity]) -> bytes:
        target = io.BytesIO()
        decrypt(io.BytesIO(data), target, identities)
        return target.getvalue()

    def by_file(data: bytes, identities: Sequence[Identity]) -> bytes:
        source, target = work / "received", work / "opened"
        source.write_bytes(data)
        target.unlink(missing_ok=True)
        try:
            decrypt_file(source, target, identities)
        except BaseException:
            assert sorted(work.glob(".*.partial")) == []
            assert not target.exists()
            raise
        return target.read_bytes()

    return by_stream if request.param == "stream" else by_file


@pytest.fixture(scope="session")
def forge() -> Callable[..., bytes]:
    """Archives by hand: members are `(name, data)` or `(name, data, {offset: bytes})` with changed header bytes.

    The checksum is right whatever was changed, so that a refusal is for the change and nothing else.
    """

    def header(name: str, size: int, changes: dict[int, bytes]) -> bytes:
        block = bytearray(member_header(name, size))
        for offset, value in changes.items():
            block[offset : offset + len(value)] = value
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block)

    def archive(
        *members: tuple[str, bytes] | tuple[str, bytes, dict[int, bytes]], end: bool = True
    ) -> bytes:
        parts = []
        for name, data, *changes in members:
            parts.append(header(name, len(data), changes[0] if changes else {}))
            parts.append(data + bytes(-len(data) % 512))
        whole = b"".join(parts)
        return whole + bytes(1024) + bytes(-(len(whole) + 1024) % 10240) if end else whole

    return archive


@pytest.fixture(scope="session")
def grant(x25519: Identity) -> Grant:
    return Grant(
        version=1,
        job_spec_sha256="5a" * 32,
        recipients=(str(x25519.recipient()),),
        expires_at=2_000_000_000,
        secret="7e" * 32,
    )
