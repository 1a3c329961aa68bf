"""File to file: whole or not at all."""

import base64
import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.errors import ErrorCode, SealingError, TrainerError, UnavailableError, UsageError
from trainer.sealing.age import Identity, decrypt_file, encrypt_file

BATCH = 1 << 20

Plaintext = Callable[[int], bytes]


@pytest.fixture
def plain(tmp_path: Path, plaintext: Plaintext) -> Path:
    path = tmp_path / "plain"
    path.write_bytes(plaintext(5 * BATCH + 3))
    return path


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_modes(tmp_path: Path, plain: Path, x25519: Identity) -> None:
    before = os.umask(0o027)
    try:
        encrypt_file(plain, tmp_path / "sealed", [x25519.recipient()])
        decrypt_file(tmp_path / "sealed", tmp_path / "opened", [x25519])
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "sealed").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "opened").stat().st_mode) == 0o600


def test_a_failed_opening_keeps_the_old_target(
    tmp_path: Path, plain: Path, x25519: Identity
) -> None:
    sealed, target = tmp_path / "sealed", tmp_path / "target"
    encrypt_file(plain, sealed, [x25519.recipient()])
    target.write_bytes(b"old")
    sealed.write_bytes(sealed.read_bytes()[:-1])
    with pytest.raises(SealingError):
        decrypt_file(sealed, target, [x25519])
    assert target.read_bytes() == b"old"
    assert _names(tmp_path) == {"plain", "sealed", "target"}


def test_an_existing_target_is_replaced_at_once(
    tmp_path: Path, plain: Path, x25519: Identity
) -> None:
    target = tmp_path / "sealed"
    target.write_bytes(b"old")
    with target.open("rb") as old:
        encrypt_file(plain, target, [x25519.recipient()])
        assert old.read() == b"old"
    decrypt_file(target, tmp_path / "opened", [x25519])
    assert (tmp_path / "opened").read_bytes() == plain.read_bytes()


def test_a_link_at_the_target_is_replaced_not_followed(
    tmp_path: Path, plain: Path, x25519: Identity
) -> None:
    (tmp_path / "elsewhere").write_bytes(b"untouched")
    (tmp_path / "sealed").symlink_to("elsewhere")
    encrypt_file(plain, tmp_path / "sealed", [x25519.recipient()])
    assert (tmp_path / "elsewhere").read_bytes() == b"untouched"
    assert not (tmp_path / "sealed").is_symlink()


def test_a_full_disk(
    tmp_path: Path, plain: Path, x25519: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = os.pwrite

    def fill_up(descriptor: int, data: bytes, offset: int) -> int:
        if offset > 2 * BATCH:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", fill_up)
    with pytest.raises(UnavailableError) as caught:
        encrypt_file(plain, tmp_path / "sealed", [x25519.recipient()])
    assert caught.value.code is ErrorCode.STORAGE_FULL
    assert _names(tmp_path) == {"plain"}


def test_short_reads_and_writes_are_continued(
    tmp_path: Path, plain: Path, x25519: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: written(fd, data[:99_999], offset))
    monkeypatch.setattr(
        os, "preadv", lambda fd, rooms, offset: read(fd, [rooms[0][:77_777]], offset)
    )
    encrypt_file(plain, tmp_path / "sealed", [x25519.recipient()])
    decrypt_file(tmp_path / "sealed", tmp_path / "opened", [x25519])
    assert (tmp_path / "opened").read_bytes() == plain.read_bytes()


def test_a_source_that_shrinks(
    tmp_path: Path, plain: Path, x25519: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = os.preadv

    def shrink(descriptor: int, rooms: list[memoryview], offset: int) -> int:
        os.truncate(plain, 3 * BATCH)
        return read(descriptor, rooms, offset)

    monkeypatch.setattr(os, "preadv", shrink)
    with pytest.raises(SealingError, match="shorter"):
        encrypt_file(plain, tmp_path / "sealed", [x25519.recipient()])
    assert _names(tmp_path) == {"plain"}


class StopError(Exception):
    """The user's interruption."""


def test_interruption_leaves_nothing(tmp_path: Path, plain: Path, x25519: Identity) -> None:
    def stop(done: int) -> None:
        if done > 2 * BATCH:
            raise StopError

    with pytest.raises(StopError):
        encrypt_file(plain, tmp_path / "sealed", [x25519.recipient()], progress=stop)
    assert _names(tmp_path) == {"plain"}


def test_progress(tmp_path: Path, plain: Path, x25519: Identity) -> None:
    sealing: list[int] = []
    opening: list[int] = []
    encrypt_file(plain, tmp_path / "sealed", [x25519.recipient()], progress=sealing.append)
    decrypt_file(tmp_path / "sealed", tmp_path / "opened", [x25519], progress=opening.append)
    assert sealing == opening == [BATCH * count for count in range(1, 6)] + [5 * BATCH + 3]


def test_a_named_pipe_is_read_as_a_stream(tmp_path: Path, plain: Path, x25519: Identity) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    thread = threading.Thread(target=lambda: pipe.write_bytes(plain.read_bytes()))
    thread.start()
    encrypt_file(pipe, tmp_path / "sealed", [x25519.recipient()])
    thread.join()
    decrypt_file(tmp_path / "sealed", tmp_path / "opened", [x25519])
    assert (tmp_path / "opened").read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("eol", [b"\n", b"\r\n"])
def test_an_armored_file(tmp_path: Path, plain: Path, x25519: Identity, eol: bytes) -> None:
    encrypt_file(plain, tmp_path / "sealed", [x25519.recipient()])
    text = base64.b64encode((tmp_path / "sealed").read_bytes())
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    frame = (b"-----BEGIN AGE ENCRYPTED FILE-----", b"-----END AGE ENCRYPTED FILE-----")
    (tmp_path / "armored").write_bytes(eol.join([b"  ", frame[0], *lines, frame[1], b""]))
    decrypt_file(tmp_path / "armored", tmp_path / "opened", [x25519])
    assert (tmp_path / "opened").read_bytes() == plain.read_bytes()
    lines[2000], lines[2001] = lines[2000][:60], lines[2000][60:] + lines[2001][:60]
    (tmp_path / "armored").write_bytes(eol.join([frame[0], *lines, frame[1], b""]))
    with pytest.raises(SealingError) as caught:
        decrypt_file(tmp_path / "armored", tmp_path / "opened", [x25519])
    assert caught.value.code is ErrorCode.ARMOR_INVALID


@pytest.mark.parametrize(
    ("source", "target", "code"),
    [
        ("absent", "sealed", ErrorCode.FILE_NOT_FOUND),
        ("plain", "absent/sealed", ErrorCode.FILE_NOT_FOUND),
        (".", "sealed", ErrorCode.USAGE),
        ("plain", "plain/sealed", ErrorCode.USAGE),
    ],
)
def test_paths_that_do_not_work(
    tmp_path: Path, plain: Path, x25519: Identity, source: str, target: str, code: ErrorCode
) -> None:
    actions: list[Callable[[], None]] = [
        lambda: encrypt_file(tmp_path / source, tmp_path / target, [x25519.recipient()]),
        lambda: decrypt_file(tmp_path / source, tmp_path / target, [x25519]),
    ]
    for action in actions:
        with pytest.raises(TrainerError) as caught:
            action()
        assert isinstance(caught.value, UsageError)
        assert caught.value.code is code
    assert _names(tmp_path) == {"plain"}


PEAK = """
import sys
from pathlib import Path
from trainer.sealing.age import decrypt_file, encrypt_file, identity_from_seed
source, identity = Path(sys.argv[1]), identity_from_seed(bytes(32))
encrypt_file(source, source.with_suffix(".age"), [identity.recipient()])
decrypt_file(source.with_suffix(".age"), source.with_suffix(".out"), [identity])
status = Path("/proc/self/status").read_text()  # rusage would count the process that started this one
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def test_memory_is_flat(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    def peak_kib(size: int) -> int:
        source = tmp_path / "sparse"
        source.write_bytes(b"")
        os.truncate(source, size)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(source)], check=True, capture_output=True, text=True
        )
        return int(done.stdout)

    small, large = peak_kib(1 << 20), peak_kib(96 << 20)
    # Buffers of all threads, and none of the 95 MiB between the two.
    assert large - small < 32 << 10
