"""What people see: errors and tables that no evidence turns into terminal commands, and colours."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from trainer.attestation.checks import Check, CheckState
from trainer.cli.app import run_command_line as run
from trainer.cli.check_output import print_checks
from trainer.errors import ExitCode

if TYPE_CHECKING:
    from tests.cli.conftest import Files

Captured = pytest.CaptureFixture[str]
ESCAPE = "\x1b[2J\u202e"


def rename_key_provider(document: dict[str, Any]) -> None:
    events = json.loads(document["event_log"])
    for event in events:
        if event["event"] == "key-provider":
            event["event_payload"] = json.dumps({"name": ESCAPE, "id": ""}).encode().hex()
    document["event_log"] = json.dumps(events)


@pytest.mark.parametrize(
    "edit",
    [
        rename_key_provider,
        lambda document: document["claims"].update(purpose=ESCAPE),
        lambda document: document["claims"]["sandbox"].update({ESCAPE: True}),
        lambda document: document.update({ESCAPE: 1}),
    ],
)
def test_evidence_does_not_command_the_terminal(
    files: Files, capsys: Captured, edit: Callable[[dict[str, Any]], object]
) -> None:
    document = json.loads(files.evidence.read_bytes())
    edit(document)
    files.evidence.write_text(json.dumps(document))
    arguments = [
        "verify",
        str(files.evidence),
        "--policy",
        str(files.policy),
        "--nonce",
        files.nonce,
    ]
    assert run(arguments) == ExitCode.VERIFICATION
    told = "".join(capsys.readouterr())
    assert "\x1b" not in told
    assert "\u202e" not in told
    assert "\\u001b[2J\\u202e" in told or "claims.purpose" in told, "shown as it is, or not at all"


CHECKS = (
    Check(1, "quote-format", "title", CheckState.AFFIRMED, found="one"),
    Check(
        2,
        "receipt-files",
        "title",
        CheckState.CONTRAINDICATED,
        "3 files",
        "2 files",
        "one is missing",
    ),
    Check(3, "gpu-cc-mode", "title", CheckState.NOT_DEMANDED),
    Check(4, "gpu-devtools", "title", CheckState.NOT_DEMANDED, found="off"),
)


def test_symbols_and_words_tell_it_without_colours(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_checks(CHECKS, title="the receipt")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "Statement" in lines
    assert "✔  1 quote-format             one" in lines
    assert "✘  2 receipt-files            contraindicated: 2 files" in lines
    assert "not demanded: gpu-cc-mode" in lines
    assert any(line.startswith("\N{EN DASH}  4 gpu-devtools") for line in lines)
    assert lines[-1] == "the receipt: 1 affirmed, 1 contraindicated, 2 not demanded"


def test_colours_on_a_terminal_unless_they_are_not_wanted(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_checks(CHECKS, title="x")
    coloured = capsys.readouterr().out
    assert "\x1b[32m" in coloured
    assert "\x1b[1;31m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    print_checks(CHECKS, title="x")
    plain = capsys.readouterr().out
    assert "\x1b[32m" not in plain
    assert "31m" not in plain
