"""The table of exit codes in docs/cli.md: each code of it by a command that ends with it, and no other code."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.conftest import SPEC
from trainer.cli import app
from trainer.cli.app import run_command_line as run
from trainer.cli.exit_codes import EXIT_CODES
from trainer.errors import (
    ErrorCode,
    ExitCode,
    JobError,
    SealingError,
    UnavailableError,
    VerificationError,
)
from trainer.exchange.spool import STATUS_NAME

if TYPE_CHECKING:
    from tests.cli.conftest import Files

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
Endings = dict[str, tuple[int, Callable[["Files"], list[object]]]]


def saved_result(files: Files) -> Path:
    saved = files.folder / "saved.json"
    verified = [
        "verify",
        files.evidence,
        "--policy",
        files.policy,
        "--nonce",
        files.nonce,
        "-q",
        "-o",
        saved,
    ]
    assert run([str(word) for word in verified]) == ExitCode.DONE
    return saved


def failed_job(files: Files) -> list[object]:
    spool = files.folder / "spool"
    spool.mkdir()
    (spool / STATUS_NAME).write_text(json.dumps({"phase": "failed", "error": "worker-died"}))
    return ["watch", spool, "--policy", files.policy, "--attestation", saved_result(files)]


def changed_result(files: Files) -> list[object]:
    key, sealed = files.folder / "key", files.folder / "result.age"
    assert run(["keygen", "--x25519", "-o", str(key)]) == ExitCode.DONE
    sealed.write_bytes(b"age-encryption.org/v1\nno header")
    given = ["--policy", files.policy, "--attestation", saved_result(files), "-i", key]
    return [
        "open",
        sealed,
        *given,
        "--dataset-and-recipients-unchecked",
        "-o",
        files.folder / "result",
    ]


def bad_rows(files: Files) -> list[object]:
    job, rows = files.folder / "job.yaml", files.folder / "rows.jsonl"
    job.write_bytes(SPEC)
    rows.write_text('{"text": 1}\n')
    return ["validate", rows, "--job", job]


ENDINGS: Endings = {
    "a version": (0, lambda _: ["--version"]),
    "no policy": (2, lambda files: ["verify", files.evidence]),
    "no such file": (2, lambda files: ["audit", files.folder / "nothing"]),
    "no such option": (2, lambda _: ["verify", "--nothing"]),
    "nobody answers": (
        3,
        lambda files: ["verify", "https://127.0.0.1:9", "--policy", files.policy],
    ),
    "another nonce": (
        4,
        lambda files: ["verify", files.evidence, "--policy", files.policy, "--nonce", "0" * 64],
    ),
    "a changed result": (5, changed_result),
    "a failed job": (6, failed_job),
    "bad rows": (7, bad_rows),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_command_ends_with_the_code_of_the_table(name: str, files: Files) -> None:
    code, arguments = ENDINGS[name]
    assert run([str(word) for word in arguments(files)]) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("a bug"), 1),
        (KeyboardInterrupt(), 130),
        (OSError(errno.EACCES, "denied"), 2),
        (OSError(errno.ENOSPC, "full"), 3),
        (UnavailableError(ErrorCode.TIMEOUT, "late"), 3),
        (VerificationError(ErrorCode.RECEIPT_INVALID, "no"), 4),
        (SealingError(ErrorCode.PAYLOAD_INVALID, "no"), 5),
        (JobError(ErrorCode.WORKER_DIED, "no"), 6),
    ],
)
def test_an_error_ends_with_the_code_of_the_table(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_options: Any) -> None:
        raise error

    monkeypatch.setattr(app, "app", fail)
    assert run(["verify"]) == code


def test_the_table_lists_every_code_and_its_meaning() -> None:
    rows = dict(re.findall(r"^\| ([0-9]+) \| (.+) \|$", PAGE.read_text("utf-8"), re.MULTILINE))
    assert rows == {str(int(code)): meaning for code, meaning in EXIT_CODES.items()}
    assert [int(code) for code in EXIT_CODES] == [*ExitCode, 130]
