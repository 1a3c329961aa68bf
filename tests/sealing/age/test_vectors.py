"""The public vectors of C2SP/CCTV: each names the outcome that every implementation must reach."""

import hashlib
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from trainer.errors import ErrorCode, SealingError
from trainer.sealing.age import ArmorReader, Identity, ScryptIdentity, decrypt, parse_identity

OUTCOMES = {
    "no match": ErrorCode.NO_IDENTITY_MATCH,
    "HMAC failure": ErrorCode.HEADER_MAC,
    "header failure": ErrorCode.HEADER_INVALID,
    "armor failure": ErrorCode.ARMOR_INVALID,
    "payload failure": ErrorCode.PAYLOAD_INVALID,
}
FOLDER = Path(__file__).parents[4] / "shared" / "vectors" / "age"
NAMES = sorted(path.name for path in FOLDER.iterdir()) if FOLDER.is_dir() else ["absent"]


@dataclass(frozen=True)
class Vector:
    expect: str
    payload_sha256: str | None
    file_key: bytes | None
    identities: tuple[Identity, ...]
    armored: bool
    file: bytes

    def source(self) -> BinaryIO:
        stream = io.BytesIO(self.file)
        return cast("BinaryIO", ArmorReader(stream)) if self.armored else stream


def _identities(fields: Sequence[tuple[str, str]]) -> Iterator[Identity]:
    for key, value in fields:
        if key == "identity":
            yield parse_identity(value)
        elif key == "passphrase":
            yield ScryptIdentity(value.encode())


@pytest.fixture
def vector(vectors: Path, name: str) -> Vector:
    head, _, file = (vectors / "age" / name).read_bytes().partition(b"\n\n")
    fields = [
        (key, value)
        for key, _, value in (line.partition(": ") for line in head.decode().splitlines())
    ]
    single = dict(fields)
    return Vector(
        expect=single["expect"],
        payload_sha256=single.get("payload"),
        file_key=bytes.fromhex(single["file key"]) if "file key" in single else None,
        identities=tuple(_identities(fields)),
        armored=single.get("armored") == "yes",
        file=zlib.decompress(file) if single.get("compressed") == "zlib" else file,
    )


def _open(vector: Vector) -> tuple[ErrorCode | None, bytes]:
    target = io.BytesIO()
    try:
        decrypt(vector.source(), target, vector.identities)
    except SealingError as error:
        return error.code, target.getvalue()
    return None, target.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_outcome(vector: Vector) -> None:
    code, plaintext = _open(vector)
    assert code == (None if vector.expect == "success" else OUTCOMES[vector.expect])
    if code is None:
        assert hashlib.sha256(plaintext).hexdigest() == vector.payload_sha256


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("stream_", "absent"))])
def test_releases_nothing_that_a_slow_and_simple_reader_would_not(vector: Vector) -> None:
    if vector.file_key is None or b"\n---" not in vector.file:
        pytest.skip("no payload to look at")
    admitted = _simple_reader(vector.file_key, vector.file)
    if vector.payload_sha256 is not None:
        assert hashlib.sha256(admitted).hexdigest() == vector.payload_sha256
    assert admitted.startswith(_open(vector)[1])


def _simple_reader(file_key: bytes, file: bytes) -> bytes:
    """Plaintext up to the first fault, chunk by chunk, from the format's description alone."""
    end = file.index(b"\n", file.index(b"\n---") + 1) + 1
    nonce, chunks = file[end : end + 16], file[end + 16 :]
    key = ChaCha20Poly1305(HKDF(SHA256(), 32, nonce, b"payload").derive(file_key))
    plaintext = b""
    for index in range(len(chunks) // 65552 + 1):
        chunk = chunks[index * 65552 : (index + 1) * 65552]
        for last in (0, 1) if len(chunk) == 65552 else (1,):
            try:
                part = key.decrypt(index.to_bytes(11, "big") + bytes([last]), chunk, None)
            except InvalidTag:
                continue
            if index and not part:
                return plaintext
            plaintext += part
            if last:
                return plaintext
            break
        else:
            return plaintext
    return plaintext


def test_nothing_is_missing(vectors: Path) -> None:
    assert len(list((vectors / "age").iterdir())) == 143


@pytest.mark.parametrize(
    "name", ["armor_crlf", "armor_full_last_line", "armor_hybrid", "armor_whitespace_outside"]
)
def test_armor_is_recognised_unasked(
    vector: Vector, decryptor: Callable[[bytes, Sequence[Identity]], bytes]
) -> None:
    plaintext = decryptor(vector.file, vector.identities)
    assert hashlib.sha256(plaintext).hexdigest() == vector.payload_sha256
