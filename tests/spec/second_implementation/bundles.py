"""Archive, grant, manifest and signature of a dataset, and the archive of a result: SPEC.md, "Sealed files"."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.spec.second_implementation.age_files import hkdf

RECORD_BYTES: Final = 10240


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def jcs(value: Any) -> bytes:
    return rfc8785.dumps(value)


def member_header(name: str, size: int) -> bytes:
    fields = [
        (name.encode(), 100), (b"0000600\0", 8), (b"0000000\0", 8), (b"0000000\0", 8),
        (f"{size:011o}\0".encode(), 12),
        (b"00000000000\0", 12), (b" " * 8, 8), (b"0", 1), (b"", 100), (b"ustar\0", 6), (b"00", 2),
        (b"", 32), (b"", 32), (b"0000000\0", 8), (b"0000000\0", 8), (b"", 167),
    ]  # fmt: skip
    header = b"".join(value.ljust(width, b"\0") for value, width in fields)
    assert len(header) == 512
    return header[:148] + f"{sum(header):06o}\0 ".encode() + header[156:]


def padme(number: int) -> int:
    """Rounds up so that few numbers exist: floor(log2 E) + 1 bits are kept after the leading one."""
    exponent = number.bit_length() - 1
    if exponent < 1:
        return number
    dropped = max(exponent - exponent.bit_length(), 0)
    return (number + (1 << dropped) - 1) >> dropped << dropped


def pack(members: list[tuple[str, bytes]]) -> bytes:
    archive = b"".join(
        member_header(name, len(data)) + data + bytes(-len(data) % 512) for name, data in members
    )
    records = -(-(len(archive) + 1024) // RECORD_BYTES)
    return archive.ljust(padme(records) * RECORD_BYTES, b"\0")


def unpack(archive: bytes) -> dict[str, bytes]:
    """Returns the files of an archive, which must be the one that `pack` makes of them."""
    files: list[tuple[str, bytes]] = []
    at = 0
    while archive[at]:
        name = archive[at : at + 100].rstrip(b"\0").decode()
        size = int(archive[at + 124 : at + 135], 8)
        files.append((name, archive[at + 512 : at + 512 + size]))
        at += 512 + size + -size % 512
    assert pack(files) == archive
    return dict(files)


@dataclass(frozen=True)
class Grant:
    """A grant with what follows from its secret."""

    document: dict[str, Any]

    @property
    def secret(self) -> bytes:
        return bytes.fromhex(self.document["secret"])

    def derived(self, name: str, context: bytes = b"") -> str:
        return hkdf(
            self.secret, None, f"confidential-trainer/{name}/v1".encode() + b"\0" + context
        ).hex()

    @property
    def events_token(self) -> str:
        return self.derived("grant-events")

    def acknowledgement(self, sealed_result: bytes) -> str:
        return self.derived("grant-acknowledgement", bytes.fromhex(sha256(sealed_result)))


def new_grant(job_spec_sha256: str, recipient: str, expires_at: int) -> Grant:
    return Grant(
        {
            "version": 1,
            "job_spec_sha256": job_spec_sha256,
            "recipients": [recipient],
            "expires_at": expires_at,
            "secret": os.urandom(32).hex(),
            "allow": {"private_progress": True},
        }
    )


def new_manifest(grant: Grant, files: Mapping[str, bytes]) -> dict[str, Any]:
    listed = {name: {"sha256": sha256(data), "size": len(data)} for name, data in files.items()}
    return {"version": 1, "salt": grant.derived("manifest-salt"), "files": listed}


def salted_digest(manifest: Mapping[str, Any], name: str) -> str:
    return sha256(
        bytes.fromhex(manifest["salt"]) + bytes.fromhex(manifest["files"][name]["sha256"])
    )


@dataclass(frozen=True)
class Signer:
    """A provider key."""

    key: Ed25519PrivateKey

    @property
    def public(self) -> str:
        return "ed25519:" + self.key.public_key().public_bytes_raw().hex()

    def sign(self, domain: str, document: bytes) -> bytes:
        return self.key.sign(f"confidential-trainer/{domain}/v1".encode() + b"\0" + document)


def pack_dataset(
    grant: Grant,
    manifest: Mapping[str, Any],
    files: Mapping[str, bytes],
    signer: Signer,
    recipient: str,
) -> bytes:
    signed = jcs(
        {
            "grant_sha256": sha256(jcs(grant.document)),
            "manifest_sha256": sha256(jcs(manifest)),
            "recipient_sha256": sha256(recipient.encode()),
        }
    )
    signature = {
        "version": 1,
        "provider": signer.public,
        "signature": signer.sign("bundle-signature", signed).hex(),
    }
    data = [(f"data/{name}", files[name]) for name in sorted(files, key=str.encode)]
    return pack(
        [
            ("grant.json", jcs(grant.document)),
            *data,
            ("manifest.json", jcs(manifest)),
            ("signature.json", jcs(signature)),
        ]
    )


def parse_exact(data: bytes) -> Any:
    """Parses JSON, which must be in RFC 8785 form."""
    value = json.loads(data)
    assert jcs(value) == data
    return value
