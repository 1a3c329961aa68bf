"""What this user's tool wrote here is told apart from what anybody else laid there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.encoding import canonical_json
from trainer.errors import ErrorCode, UsageError, VerificationError
from trainer.provider import own_files
from trainer.provider.own_files import LocalSecret, OwnDirectory, add_tag, check_tag

DOCUMENT = canonical_json({"a": 1})


@pytest.fixture
def secret(tmp_path: Path) -> LocalSecret:
    return LocalSecret(tmp_path / "state" / "tool" / "secret")


@pytest.fixture
def directory(tmp_path: Path, secret: LocalSecret) -> OwnDirectory:
    made = OwnDirectory(tmp_path / "work", secret)
    made.create({"first.json": DOCUMENT})
    return made


def test_the_secret_is_made_once_and_is_private(tmp_path: Path, secret: LocalSecret) -> None:
    key = secret.key_for("a")
    file = tmp_path / "state" / "tool" / "secret"
    assert (file.stat().st_mode & 0o777, file.stat().st_size) == (0o600, 32)
    assert file.parent.stat().st_mode & 0o077 == 0
    assert LocalSecret(file).key_for("a") == key
    assert len({key, secret.key_for("b"), secret.key_for("a", ""), secret.key_for("", "a")}) == 4
    file.unlink()
    assert secret.key_for("a") != key


@pytest.mark.parametrize("fault", ["readable", "short", "long", "link", "pipe", "directory"])
def test_a_secret_that_others_may_know_is_not_used(
    fault: str, tmp_path: Path, secret: LocalSecret
) -> None:
    secret.key_for("a")
    file = tmp_path / "state" / "tool" / "secret"
    if fault == "readable":
        file.chmod(0o640)
    elif fault in ("short", "long"):
        file.write_bytes(bytes(31 if fault == "short" else 33))
    else:
        file.rename(tmp_path / "moved")
        if fault == "link":
            file.symlink_to(tmp_path / "moved")
        elif fault == "pipe":
            os.mkfifo(file, 0o600)
        else:
            file.mkdir()
    with pytest.raises(UsageError) as caught:
        secret.key_for("a")
    assert caught.value.expected
    assert "XDG_STATE_HOME" in str(caught.value.hint)


def test_of_another_user_it_is_not_used(
    secret: LocalSecret, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret.key_for("a")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UsageError, match="only you can read"):
        secret.key_for("a")


def test_a_tag_is_of_one_key_and_one_document() -> None:
    key, tagged = bytes(32), add_tag(DOCUMENT, bytes(32))
    assert check_tag(tagged, key) == DOCUMENT
    assert check_tag(tagged, bytes([1]) * 32) is None
    assert check_tag(tagged.replace(b'"a":1', b'"a":2'), key) is None
    for data in (
        b"",
        b"[]",
        b"\xff",
        DOCUMENT,
        b'{"tag":7}',
        b'{"a":1,"a":1,"tag":""}',
        tagged.replace(b"tag", b"tog"),
    ):
        assert check_tag(data, key) is None


def test_the_examples_of_the_format(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(bytes(range(32)))
    file.chmod(0o600)
    document = (Path(own_files.__file__).parents[1] / "SPEC.md").read_text("utf-8")
    for purpose in (("result-record",), ("directory", "/home/me/result.submission", "grant.json")):
        key = LocalSecret(file).key_for(*purpose)
        assert f"{', '.join(purpose)}: {key.hex()}\n{add_tag(DOCUMENT, key).decode()}\n" in document


def test_documents_come_back(directory: OwnDirectory) -> None:
    directory.require_own()
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert directory.read("first.json") == DOCUMENT
    directory.write("second.json", canonical_json({"b": 2}))
    assert directory.read("second.json") == canonical_json({"b": 2})


def link(path: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    path.symlink_to(folder)


FOREIGN: dict[str, Callable[[Path, Path], object]] = {
    "a folder of the user": lambda path, _: path.mkdir(),
    "a link to a folder": link,
    "a dangling link": lambda path, other: path.symlink_to(other),
    "a file": lambda path, _: path.write_text("mine"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_there_is_not_adopted(kind: str, tmp_path: Path, secret: LocalSecret) -> None:
    made = OwnDirectory(tmp_path / "work", secret)
    FOREIGN[kind](made.path, tmp_path / "other")
    with pytest.raises(UsageError) as caught:
        made.create({"first.json": DOCUMENT})
    assert caught.value.code is ErrorCode.OUTPUT_EXISTS
    assert caught.value.hint
    assert not list(tmp_path.glob(".work-*"))
    assert not (tmp_path / "other" / "first.json").exists()


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "mode": lambda path, _: path.chmod(0o755),
    "a link in it": lambda path, other: (path / "uploaded").symlink_to(other),
    "a pipe in it": lambda path, _: os.mkfifo(path / "uploaded"),
    "a link to it": lambda path, other: link(path, path.rename(other)),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_directory_that_others_reach_is_refused(
    kind: str, directory: OwnDirectory, tmp_path: Path
) -> None:
    CHANGES[kind](directory.path, tmp_path / "other")
    with pytest.raises(UsageError) as caught:
        directory.require_own()
    assert caught.value.code is ErrorCode.OUTPUT_EXISTS


def test_a_directory_below_one_of_a_group_is_found_again(
    tmp_path: Path, secret: LocalSecret
) -> None:
    """Directories inherit the bit from one that a group shares; it gives nobody access."""
    tmp_path.chmod(0o2770)
    made = OwnDirectory(tmp_path / "work", secret)
    made.create({"first.json": DOCUMENT})
    assert made.path.stat().st_mode & 0o7777 == 0o2700
    made.require_own()


def test_of_another_user_a_directory_is_refused(
    directory: OwnDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UsageError, match="another user"):
        directory.require_own()


def test_documents_are_of_their_directory_name_and_machine(
    directory: OwnDirectory, secret: LocalSecret, tmp_path: Path
) -> None:
    shutil.copytree(directory.path, tmp_path / "copy")
    shutil.copy(directory.path / "first.json", directory.path / "second.json")
    (directory.path / "third.json").write_bytes(DOCUMENT)
    elsewhere = OwnDirectory(directory.path, LocalSecret(tmp_path / "other machine"))
    for place, name in (
        (OwnDirectory(tmp_path / "copy", secret), "first.json"),
        (directory, "second.json"),
        (directory, "third.json"),
        (elsewhere, "first.json"),
    ):
        with pytest.raises(VerificationError) as caught:
            place.read(name)
        assert caught.value.hint
