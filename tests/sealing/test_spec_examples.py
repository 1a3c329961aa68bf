"""The byte examples of the specification, made by the code that it specifies.

`python tests/sealing/test_spec_examples.py` prints them for pasting.
"""

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from unittest import mock

import pytest

from trainer.sealing.age import decrypt, encrypt, identity_from_seed
from trainer.sealing.archive import ArchiveLimits, ArchiveReader
from trainer.sealing.bundle import Grant, pack_bundle
from trainer.sealing.sealed_result import seal_result

SEED = bytes(range(32))
ROW = b'{"text":"Hi."}\n'


def _count_up(size: int) -> bytes:
    return bytes(range(size))


def hex_dump(data: bytes) -> str:
    """As `hexdump -C` prints it: lines that repeat are shown once, then as `*`."""
    lines = [(offset, data[offset : offset + 16]) for offset in range(0, len(data), 16)]
    shown = []
    for _, group in groupby(lines, key=lambda line: line[1]):
        (offset, row), *repeated = group
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        shown.append(f"{offset:08x}  {row[:8].hex(' '):23}  {row[8:].hex(' '):23}  |{text}|")
        shown.extend("*" for _ in repeated[:1])
    return "\n".join([*shown, f"{len(data):08x}"])


def _layout(archive: bytes) -> str:
    reader = ArchiveReader(io.BytesIO(archive), ArchiveLimits())
    lines, position = [], 0
    while (member := reader.next_member()) is not None:
        digest = hashlib.sha256(reader.read_member(member, 1 << 20)).hexdigest()
        lines.append(f"{position:6}  {member.size:5}  {digest}  {member.name}")
        position += 512 + -(-member.size // 512) * 512
    digest = hashlib.sha256(archive).hexdigest()
    return "\n".join(
        [*lines, f"{position:6}  zeros up to {len(archive)}", f"SHA-256 of the archive: {digest}"]
    )


def _keys() -> str:
    hybrid, x25519 = identity_from_seed(SEED), identity_from_seed(SEED, hybrid=False)
    recipient = str(hybrid.recipient())
    return "\n".join(
        [
            f"seed              {SEED.hex()}",
            f"X25519 identity   {x25519}",
            f"X25519 recipient  {x25519.recipient()}",
            f"hybrid identity   {hybrid}",
            f"hybrid recipient  {recipient[:40]}… ({len(recipient)} characters)",
            f"  its SHA-256     {hashlib.sha256(recipient.encode()).hexdigest()}",
        ]
    )


def _bundle() -> Iterator[str]:
    grant = Grant(
        version=1,
        job_spec_sha256="5a" * 32,
        recipients=(str(identity_from_seed(SEED, hybrid=False).recipient()),),
        expires_at=1_800_000_000,
        secret="7e" * 32,
    )
    yield grant.canonical().decode()
    target = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "row").write_bytes(ROW)
        manifest = pack_bundle(target, grant, {"train.jsonl": Path(folder) / "row"})
    yield f"{manifest.canonical().decode()}\nSHA-256: {manifest.sha256()}"
    yield _layout(target.getvalue())
    yield hex_dump(target.getvalue()[:512])


def _age_file() -> str:
    target = io.BytesIO()
    recipient = identity_from_seed(SEED, hybrid=False).recipient()
    with mock.patch.object(os, "urandom", _count_up):
        encrypt(io.BytesIO(ROW), target, [recipient])
    return hex_dump(target.getvalue())


def _result() -> str:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        for name in ("receipt.json", "adapter/adapter_config.json", "report/metrics.jsonl"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text("{}\n")
        identity = identity_from_seed(SEED)
        seal_result(tree, Path(folder) / "result", [identity.recipient()])
        opened = io.BytesIO()
        with (Path(folder) / "result").open("rb") as sealed:
            decrypt(sealed, opened, [identity])
    return _layout(opened.getvalue())


def examples() -> list[str]:
    """All examples, in the order of the specification."""
    return [_keys(), *_bundle(), _age_file(), _result()]


@pytest.mark.parametrize("number", range(7))
def test_the_specification_shows_what_the_code_does(
    number: int, pytestconfig: pytest.Config
) -> None:
    written = "\n".join(
        path.read_text() for path in (pytestconfig.rootpath / "trainer").rglob("SPEC*.md")
    )
    assert f"```\n{examples()[number]}\n```" in written


def test_there_are_no_more() -> None:
    assert len(examples()) == 7


if __name__ == "__main__":
    print("\n\n".join(f"```\n{example}\n```" for example in examples()))
