"""The archive: one spelling, which tar reads and writes too; everything else is refused."""

import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import ErrorCode, SealingError, UsageError
from trainer.sealing.archive import (
    RECORD_BYTES,
    ArchiveLimits,
    ArchiveMember,
    ArchiveReader,
    ArchiveWriter,
    member_header,
    padded_records,
    require_member_name,
)

Forge = Callable[..., bytes]

FILES = {"a": b"", "data/b.jsonl": b"x" * 511, "data/ü 1": b"y" * 512, "z": b"z" * 513}


def _write(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    archive = ArchiveWriter(target)
    for name, data in files.items():
        assert archive.add(name, io.BytesIO(data), len(data)) == hashlib.sha256(data).hexdigest()
    archive.finish()
    return target.getvalue()


def _read(data: bytes, limits: ArchiveLimits | None = None) -> dict[str, bytes]:
    archive = ArchiveReader(io.BytesIO(data), limits or ArchiveLimits())
    found = {}
    while (member := archive.next_member()) is not None:
        found[member.name] = archive.read_member(member, 1 << 22)
    return found


def _refusal(data: bytes, limits: ArchiveLimits | None = None) -> str:
    with pytest.raises(SealingError) as caught:
        _read(data, limits)
    assert caught.value.code is ErrorCode.BUNDLE_INVALID
    return str(caught.value)


def test_round_trip() -> None:
    assert _read(_write(FILES)) == FILES


names = st.lists(
    st.text(
        st.characters(exclude_characters="/\\", categories=["L", "N", "P", "S"]),
        min_size=1,
        max_size=8,
    ),
    min_size=1,
    max_size=3,
).map("/".join)


@given(
    st.dictionaries(
        names.filter(lambda name: not {".", ".."} & set(name.split("/"))), st.binary(max_size=1100)
    )
)
def test_any_files_round_trip(files: dict[str, bytes]) -> None:
    assert _read(_write(files)) == files


def test_tarfile_reads_it() -> None:
    with tarfile.open(fileobj=io.BytesIO(_write(FILES))) as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == list(FILES)
        assert all(
            member.isreg() and member.mode == 0o600 and member.mtime == 0 for member in members
        )
        for member in members:
            extracted = archive.extractfile(member)
            assert extracted is not None
            assert extracted.read() == FILES[member.name]


def test_tar_writes_the_same_bytes(tmp_path: Path) -> None:
    tar = shutil.which("tar")
    if (
        tar is None
        or "GNU"
        not in subprocess.run([tar, "--version"], capture_output=True, text=True, check=True).stdout
    ):
        pytest.skip("GNU tar is not installed")
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    options = [
        "--format=ustar",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--mode=0600",
        "--mtime=@0",
    ]
    done = subprocess.run(
        [tar, *options, "-cf", "-", *FILES], cwd=tmp_path, capture_output=True, check=True
    )
    assert done.stdout == _write(FILES)


def test_sizes_beyond_octal() -> None:
    size = 1 << 40
    header = member_header("large", size)
    assert tarfile.TarInfo.frombuf(header, "utf-8", "strict").size == size
    archive = ArchiveReader(io.BytesIO(header), ArchiveLimits(max_bytes=size))
    assert archive.next_member() == ArchiveMember("large", size)
    assert "at most" in _refusal(header, ArchiveLimits(max_bytes=size - 1))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a/..",
        ".",
        "./a",
        "a//b",
        "a/",
        "a\\b",
        "a\nb",
        "a\x1b[2Jb",
        "a\u202eb",
        "a\u200bb",
        "a\0b",
        "\udcff",
        "n" * 101,
        "ü" * 51,
    ],
)
def test_names_that_are_refused(name: str, forge: Forge) -> None:
    with pytest.raises(ValueError, match="a file name"):
        require_member_name(name)
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) <= 100 and "\0" not in name:
        _refusal(forge(("placeholder", b"", {0: encoded.ljust(100, b"\0")})))


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (b"1", "a hard link"),
        (b"2", "a symbolic link"),
        (b"3", "a character device"),
        (b"4", "a block device"),
        (b"5", "a directory"),
        (b"6", "a named pipe"),
        (b"7", "an unknown kind"),
        (b"S", "a sparse file"),
        (b"L", "an extension header"),
        (b"x", "an extension header"),
        (b"g", "an extension header"),
        (b"\0", "an unknown kind"),
    ],
)
def test_only_regular_files(kind: bytes, named: str, forge: Forge) -> None:
    assert f"got {named}" in _refusal(forge(("a", b"", {156: kind, 157: b"/etc/passwd"})))


@pytest.mark.parametrize(
    "changes",
    [
        {100: b"0004755\0"},  # mode
        {108: b"0001750\0"},  # owner
        {116: b"0001750\0"},  # group
        {136: b"00000000001\0"},  # time
        {157: b"/etc/passwd"},  # link name of what is no link
        {257: b"ustar  \0"},  # GNU's magic
        {265: b"root"},  # owner's name
        {297: b"root"},
        {329: b"0000001\0"},  # device number
        {345: b"/etc"},  # prefix: another reader would put it before the name
        {500: b"\1"},
        {124: b"     000000\0"},  # the size, spelt otherwise
        {124: b"00000000000 "},
        {124: b"\x80" + bytes(11)},
        {124: b"\xff" + bytes(11)},
        {124: b"0000000000z\0"},
        {50: b"hidden"},  # after the end of the name
    ],
)
def test_headers_have_one_spelling(changes: dict[int, bytes], forge: Forge) -> None:
    assert _read(forge(("a", b""))) == {"a": b""}
    _refusal(forge(("a", b"", changes)))


def test_a_wrong_checksum(forge: Forge) -> None:
    data = bytearray(forge(("a", b"")))
    data[150] ^= 1
    assert "header" in _refusal(bytes(data))


def test_duplicates(forge: Forge) -> None:
    assert "same name" in _refusal(forge(("a", b"1"), ("b", b"2"), ("a", b"3")))


def test_padding_must_be_zero(forge: Forge) -> None:
    data = bytearray(forge(("a", b"1")))
    data[600] = 1
    assert "padding" in _refusal(bytes(data))


@pytest.mark.parametrize("position", [1100, 1600, 5000, 10239])
def test_the_end_must_be_zero(position: int, forge: Forge) -> None:
    data = bytearray(forge(("a", b"1")))
    data[position] = 1
    _refusal(bytes(data))


def test_nothing_may_follow(forge: Forge) -> None:
    whole = forge(("a", b"1"))
    for tail in (b"\0", b"x", bytes(10240), forge(("b", b"2"))):
        assert "follows" in _refusal(whole + tail)


def test_the_size_of_an_archive_says_little_about_what_is_in_it() -> None:
    """Who stores sealed files sees their sizes, and a worker that was taken over chooses what it writes."""
    sizes = {len(_write({"a": bytes(records * RECORD_BYTES + 7)})) for records in range(600)}
    assert len(sizes) == 63, "of 600"
    assert all(size % RECORD_BYTES == 0 for size in sizes)
    assert max(map(padded_records, range(1, 1 << 14))) == 1 << 14
    assert max(padded_records(records) / records for records in range(1, 1 << 14)) < 1.12


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 40))
def test_padding_keeps_the_order_and_is_padded_already(one: int, other: int) -> None:
    fewer, more = sorted((one, other))
    assert fewer <= padded_records(fewer) <= padded_records(more)
    assert padded_records(padded_records(more)) == padded_records(more)


def test_another_amount_of_padding_is_refused() -> None:
    data = _write({"a": bytes(140 * RECORD_BYTES)})
    assert len(data) == 144 * RECORD_BYTES
    assert list(_read(data, ArchiveLimits())) == ["a"]
    assert "cut short" in _refusal(data[:-RECORD_BYTES])
    assert "follows" in _refusal(data + bytes(RECORD_BYTES))
    assert "follows" in _refusal(data[:-1] + b"x")


@pytest.mark.parametrize("size", [0, 511, 512, 600, 1024, 1536, 2048, 10239])
def test_truncation(size: int, forge: Forge) -> None:
    assert "cut short" in _refusal(forge(("a", b"1"))[:size])


def test_limits_hold_before_data_is_read(forge: Forge) -> None:
    bomb = member_header("a", 1 << 62)
    assert "at most" in _refusal(bomb)
    assert "at most 2" in _refusal(
        forge(("a", b""), ("b", b""), ("c", b"")), ArchiveLimits(max_files=2)
    )
    assert "at most 3" in _refusal(forge(("a", b"12"), ("b", b"34")), ArchiveLimits(max_bytes=3))
    _read(forge(("a", b"12"), ("b", b"34")), ArchiveLimits(max_files=2, max_bytes=4))


def test_documents_are_bounded(forge: Forge) -> None:
    archive = ArchiveReader(io.BytesIO(forge(("a", b"12345"))), ArchiveLimits())
    member = archive.next_member()
    assert member is not None
    with pytest.raises(SealingError, match="at most 4"):
        archive.read_member(member, 4)


@pytest.mark.parametrize("size", [2, 4])
def test_sources_must_have_the_announced_size(size: int) -> None:
    with pytest.raises(UsageError, match="changed"):
        ArchiveWriter(io.BytesIO()).add("a", io.BytesIO(b"123"), size)
