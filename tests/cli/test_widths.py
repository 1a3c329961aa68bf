"""On a terminal of 80 or 60 columns no printed line is longer than it; elsewhere a line stays one line."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from rich.cells import cell_len

from tests.cli.conftest import SPEC
from tests.cli.test_printing import attestation_result
from trainer.attestation.catalogue import DEFINITIONS
from trainer.attestation.checks import Check, CheckState
from trainer.audit import audit_compose
from trainer.cli.app import run_command_line as run
from trainer.cli.audit_command import print_review
from trainer.cli.check_output import print_attestation_result, print_checks
from trainer.cli.console import print_wrapped
from trainer.cli.receipt_commands import print_account
from trainer.cli.safe_console import SafeConsole
from trainer.cli.validation_output import ValidationReport, print_validation
from trainer.errors import DataError, ErrorCode, ExitCode
from trainer.provider.receipt_account import AccountLine
from trainer.spec import parse_job_spec
from trainer.validation.survey import Survey

if TYPE_CHECKING:
    from tests.cli.conftest import Files

Captured = pytest.CaptureFixture[str]
LONG = "/a/very/long/path of several words/" + "x" * 90 + "/漢字" * 20
CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture(params=[80, 60])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A terminal as rich sees it, of this many columns."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    return int(request.param)


def too_long(text: str, columns: int) -> list[str]:
    return [line for line in CODES.sub("", text).splitlines() if cell_len(line) > columns]


def print_checks_of_every_code() -> None:
    states = list(CheckState)
    checks = [
        Check(number, code, definition.title, states[number % len(states)], LONG, LONG, LONG)
        for number, (code, definition) in enumerate(DEFINITIONS.items(), 1)
    ]
    print_checks(checks, title="checks")


def print_long_review() -> None:
    embedded = json.dumps({"services": {"x": {"image": LONG, "environment": {"KEY": LONG}}}})
    document = {
        "name": "x",
        "docker_compose_file": embedded,
        "allowed_envs": ["x" * 90],
        "y" * 90: "z",
    }
    print_review(
        audit_compose(json.dumps(document).encode(), against=b"services: {x: {}}"), compared=True
    )


def print_long_validation() -> None:
    found = Survey(side_files=(LONG,), warnings=[LONG])
    found.rows[LONG]["messages"] = 10**9
    found.rows["b"] = Counter(messages=1)
    found.refusals.add(
        DataError(ErrorCode.DATASET_ROW_INVALID, LONG, file=LONG, row=10**9, field=LONG)
    )
    found.lengths.extend([1, 10**6] * 50)
    listed = b"exchange: {providers: ['ed25519:" + b"b" * 64 + b"']}\n"
    spec = parse_job_spec(SPEC + listed)
    tokens = cast("Any", SimpleNamespace())
    print_validation(
        ValidationReport(spec, found, tokens, None, "", {LONG: 10**9}, show_example=False)
    )


def print_long_account() -> None:
    print_account(
        [AccountLine(f"  name          {LONG}", 16), AccountLine(""), AccountLine(f"  ? {LONG}", 4)]
    )


PRINTED: dict[str, Callable[[], object]] = {
    "an appraisal": lambda: print_attestation_result(attestation_result(LONG)),
    "checks": print_checks_of_every_code,
    "an audit": print_long_review,
    "a validation": print_long_validation,
    "an account of a receipt": print_long_account,
}


@pytest.mark.parametrize("name", PRINTED)
def test_no_line_is_longer_than_the_terminal(name: str, columns: int, capsys: Captured) -> None:
    PRINTED[name]()
    told = capsys.readouterr().out
    assert told
    assert not too_long(told, columns)


@pytest.mark.parametrize(
    "command", ["", "keygen", "audit", "policy init", "verify", "validate", "submit", "open"]
)
def test_help_fits(command: str, columns: int, capsys: Captured) -> None:
    assert run([*command.split(), "--help"]) == ExitCode.DONE
    assert not too_long(capsys.readouterr().out, columns)


def test_continued_lines_begin_below_the_text(columns: int, capsys: Captured) -> None:
    print_wrapped("label     " + "word " * 40, indent=10)
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("label     word")
    assert len(others) >= 2
    assert all(line.startswith(" " * 10 + "word") for line in others)
    assert columns


def test_elsewhere_a_line_is_one_line(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_wrapped("label     " + "word " * 40, indent=10)
    assert len(capsys.readouterr().out.splitlines()) == 1


def on_a_terminal(columns: int, show: Callable[[], object]) -> str:
    """Runs `show` in a child whose stdout and stderr are a terminal; returns what the terminal got."""
    pid, terminal = pty.fork()
    if pid == 0:
        status = 1
        try:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            sys.stdout, sys.stderr = (
                os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2)
            )
            show()
            sys.stdout.flush()
            status = 0
        finally:
            os._exit(status)
    shown = b""
    try:
        while piece := os.read(terminal, 1 << 16):
            shown += piece
    except OSError:  # Linux ends the reading of a terminal without writers with EIO
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
    return shown.decode()


@pytest.mark.parametrize("wide", [80, 60])
def test_a_real_terminal(wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")

    def show() -> None:
        assert SafeConsole().width == wide
        print_wrapped(f"policy      {LONG}", indent=12)
        print_checks_of_every_code()

    shown = on_a_terminal(wide, show)
    assert "policy      " in shown
    assert not too_long(shown, wide)


def test_verify_says_how_long_ago(files: Files, capsys: Captured, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    arguments = [
        "verify",
        str(files.evidence),
        "--policy",
        str(files.policy),
        "--nonce",
        files.nonce,
    ]
    assert run([*arguments, "-o", str(saved)]) == ExitCode.DONE
    told = capsys.readouterr().out
    assert re.search(r"appraised   20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC \((now|\d+ s ago)\)", told)
    assert re.search(r"valid until 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC \(in 2[34] h\)", told)
