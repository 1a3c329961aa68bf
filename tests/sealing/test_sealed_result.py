"""The sealed result: a tree comes back as it was, and nothing but a tree of regular files goes in or out."""

import io
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import trainer.sealing.extraction
import trainer.sealing.sealed_result
from trainer.encoding import file_sha256
from trainer.errors import ErrorCode, SealingError, UsageError
from trainer.sealing.age import Identity, encrypt
from trainer.sealing.archive import RECORD_BYTES, ArchiveLimits
from trainer.sealing.sealed_result import open_result, seal_result

Forge = Callable[..., bytes]
LIMITS = ArchiveLimits(max_files=10, max_bytes=8 << 20)
NAMES = (
    "adapter/adapter_model.safetensors",
    "adapter/config.json",
    "receipt.json",
    "report/logs/empty",
)


@pytest.fixture
def tree(tmp_path: Path, plaintext: Callable[[int], bytes]) -> Path:
    root = tmp_path / "tree"
    for number, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(plaintext(700_000 * (3 - number)))
    return root


@pytest.fixture
def into(tmp_path: Path) -> Path:
    path = tmp_path / "into"
    path.mkdir()
    return path


def _contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_round_trip(tree: Path, into: Path, hybrid: Identity, tmp_path: Path) -> None:
    told: list[int] = []
    sealed = seal_result(tree, tmp_path / "result", [hybrid.recipient()], progress=told.append)
    assert sealed.size == (tmp_path / "result").stat().st_size
    assert sealed.sha256 == file_sha256(tmp_path / "result")
    assert open_result(tmp_path / "result", [hybrid], into, limits=LIMITS) == NAMES
    assert _contents(into) == _contents(tree)
    assert told == sorted(told)
    assert told[-1] % 10240 == 0  # the archive's size


def test_stock_tools_open_it(tree: Path, into: Path, x25519: Identity, tmp_path: Path) -> None:
    if shutil.which("age") is None:
        pytest.skip("the age command is not installed")
    # More zeros after the end than a pipe holds. GNU tar stops reading at the end, so that age may be ended by a
    # closed pipe; a shell with `pipefail` needs somebody who reads the rest.
    (tree / "weights").write_bytes(bytes(135 * RECORD_BYTES))
    seal_result(tree, tmp_path / "result.tar.age", [x25519.recipient()])
    (tmp_path / "key").write_text(str(x25519))
    subprocess.run("age -d -i ../key ../result.tar.age | tar x", shell=True, check=True, cwd=into)
    command = "set -o pipefail; age -d -i ../key ../result.tar.age | (tar x && cat >/dev/null)"
    subprocess.run(["bash", "-c", command], check=True, cwd=into)
    assert _contents(into) == _contents(tree)


class Reluctant(io.FileIO):
    """Takes a part of what is written at a time, as a nearly full disk does."""

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        return super().write(bytes(data[:50_001]))


def test_short_writes_are_continued(
    tree: Path, into: Path, x25519: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal_result(tree, tmp_path / "result", [x25519.recipient()])
    monkeypatch.setattr(
        trainer.sealing.extraction,
        "open",
        lambda fd, _mode, buffering: Reluctant(fd, "w"),
        raising=False,
    )
    open_result(tmp_path / "result", [x25519], into, limits=LIMITS)
    assert _contents(into) == _contents(tree)


@pytest.mark.parametrize("where", ["report/leak", "leak"])
def test_links_are_not_followed(tree: Path, x25519: Identity, tmp_path: Path, where: str) -> None:
    for target in ("/etc/passwd", "/etc", "nowhere"):
        (tree / where).symlink_to(target)
        with pytest.raises(SealingError) as caught:
            seal_result(tree, tmp_path / "result", [x25519.recipient()])
        assert caught.value.code is ErrorCode.BUNDLE_INVALID
        (tree / where).unlink()
    assert {path.name for path in tmp_path.iterdir()} == {"tree"}


def test_a_link_that_appears_meanwhile(
    tree: Path, x25519: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "config.json").write_text("secret")

    def list_then_swap(_tree: Path) -> list[str]:
        shutil.rmtree(tree / "adapter")
        (tree / "adapter").symlink_to(tmp_path / "keys")
        return ["adapter/config.json"]

    monkeypatch.setattr(trainer.sealing.sealed_result, "_list_files", list_then_swap)
    with pytest.raises(UsageError):
        seal_result(tree, tmp_path / "result", [x25519.recipient()])
    assert not (tmp_path / "result").exists()


def test_pipes_do_not_block(tree: Path, x25519: Identity, tmp_path: Path) -> None:
    os.mkfifo(tree / "pipe")
    with pytest.raises(SealingError):
        seal_result(tree, tmp_path / "result", [x25519.recipient()])


def test_a_missing_tree(x25519: Identity, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        seal_result(tmp_path / "absent", tmp_path / "result", [x25519.recipient()])
    assert caught.value.code is ErrorCode.FILE_NOT_FOUND
    assert list(tmp_path.iterdir()) == []


def test_the_directory_must_be_empty(
    tree: Path, into: Path, x25519: Identity, tmp_path: Path
) -> None:
    seal_result(tree, tmp_path / "result", [x25519.recipient()])
    (into / "mine").write_bytes(b"")
    with pytest.raises(UsageError) as caught:
        open_result(tmp_path / "result", [x25519], into, limits=LIMITS)
    assert caught.value.code is ErrorCode.OUTPUT_EXISTS
    assert [path.name for path in into.iterdir()] == ["mine"]


@pytest.mark.parametrize("cut", [1, 17, 70_000, 1_500_000])
def test_truncation_leaves_nothing(
    tree: Path, into: Path, x25519: Identity, tmp_path: Path, cut: int
) -> None:
    seal_result(tree, tmp_path / "result", [x25519.recipient()])
    os.truncate(tmp_path / "result", (tmp_path / "result").stat().st_size - cut)
    with pytest.raises(SealingError) as caught:
        open_result(tmp_path / "result", [x25519], into, limits=LIMITS)
    assert caught.value.code is ErrorCode.PAYLOAD_INVALID
    assert list(into.iterdir()) == []


def test_hostile_archives_leave_nothing(
    into: Path, x25519: Identity, tmp_path: Path, forge: Forge
) -> None:
    escape = {0: b"../escape".ljust(100, b"\0")}
    for archive in (
        forge(("a", b"1"), ("b", b"2", escape)),
        forge(("b", b"1"), ("a", b"2")),
        forge(("a", b"1"), ("a", b"2")),
        forge(("a", b"1"), ("a/b", b"2")),
        forge(("a", b"1"), ("b", b"", {156: b"2", 157: b"/etc"})),
        forge(*((f"{number:02}", b"") for number in range(11))),
        forge(("a", bytes(9 << 20))),
        forge(("a/deep/file", b"1"), end=False),
        forge(("a", b"1")) + b"x",
    ):
        with (tmp_path / "result").open("wb") as target:
            encrypt(io.BytesIO(archive), target, [x25519.recipient()])
        with pytest.raises(SealingError) as caught:
            open_result(tmp_path / "result", [x25519], into, limits=LIMITS)
        assert caught.value.code is ErrorCode.BUNDLE_INVALID
        assert list(into.iterdir()) == []
    assert not (tmp_path / "escape").exists()
