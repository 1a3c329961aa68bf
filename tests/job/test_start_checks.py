"""What an operator reads if a directory or a socket cannot be used."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from trainer.errors import ErrorCode, UnavailableError, UsageError
from trainer.job import start_checks
from trainer.job.ciphertext import open_ciphertext_directory
from trainer.job.start_checks import require_usable_directory, require_usable_socket


def test_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("")
    with pytest.raises(UsageError) as caught, open_ciphertext_directory(tmp_path / "spool"):
        pass
    assert str(tmp_path / "spool") in caught.value.message
    assert "a file of user" in str(caught.value.found)
    assert "install -d" in str(caught.value.hint)


def test_directory_of_another_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root of a container, which has not the capability to set the mode of another user's directory."""

    def refuse(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    monkeypatch.setattr(start_checks, "can_separate_users", lambda: True)
    with pytest.raises(UsageError) as caught:
        require_usable_directory(tmp_path)
    error = caught.value
    assert "cannot be used: Operation not permitted" in error.message
    assert f"user {os.geteuid()} owns" in str(error.expected)
    assert f"a directory of user {tmp_path.stat().st_uid}, mode" in str(error.found)


def test_directory_that_can_be_used(tmp_path: Path) -> None:
    mode = tmp_path.stat().st_mode
    require_usable_directory(tmp_path / "new" / "spool")
    require_usable_directory(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]
    assert tmp_path.stat().st_mode == mode


def test_no_temporary_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(UsageError) as caught, open_ciphertext_directory(None):
        pass
    assert "no temporary directory" in caught.value.message
    assert "--ciphertext-dir" in str(caught.value.hint)


def test_socket_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        require_usable_socket(str(path))
        monkeypatch.setattr(os, "access", lambda *_arguments: False)
        with pytest.raises(UnavailableError) as caught:
            require_usable_socket(str(path))
    assert caught.value.code is ErrorCode.GUEST_AGENT_UNAVAILABLE
    assert f"a socket of user {path.stat().st_uid}, mode" in str(caught.value.found)
    assert "run the job as root" in str(caught.value.hint)


def test_file_in_place_of_the_socket(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("")
    with pytest.raises(UnavailableError):
        require_usable_socket(str(tmp_path / "s"))


def test_absent_socket_is_reported_by_connecting(tmp_path: Path) -> None:
    require_usable_socket(str(tmp_path / "absent"))
