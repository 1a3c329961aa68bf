"""Whatever text comes from others, and wherever it is printed: it commands no terminal, and JSON stays ASCII."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.attestation.checks import Check, CheckState
from trainer.attestation.result.attestation_result import AttestationResult
from trainer.audit import audit_compose
from trainer.cli import console
from trainer.cli.app import run_command_line as run
from trainer.cli.audit_command import print_review
from trainer.cli.check_output import print_attestation_result
from trainer.cli.safe_console import SafeConsole
from trainer.cli.terminal_progress import TerminalProgress
from trainer.encoding import printable
from trainer.errors import DataError, ErrorCode, UsageError
from trainer.models import Phase, Status
from trainer.provider.job_events import PrivateMetrics

COMMANDS = Path(console.__file__).parent
HOSTILE = (
    *map(chr, (*range(0x20), *range(0x7F, 0xA0))),  # C0, DEL, C1
    "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u034f", "\u3164", "\ufe0f", "\U000e0100",
    "\u061c", "\u200e", "\u200f", *map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))),  # bidirectional
    "\u2028", "\u2029", "\U000e0041", "\ue000", "\udc9b",
)  # fmt: skip
SEQUENCES = (
    "\x1b[2J",
    "\x9b31m",
    "\x1b]8;;http://x\x07link\x1b]8;;\x07",
    "\r\x1b[K",
    "[bold]",
    "\x1b]52;c;eA==\x07",
)
texts = st.lists(
    st.sampled_from((*HOSTILE, *SEQUENCES, "a", " ", "é", "漢")), min_size=1, max_size=12
).map("".join)


def is_safe(text: str) -> bool:
    """Whether nothing but line ends and what has a width and one meaning is in a text."""
    return all(line == printable(line) for line in text.split("\n"))


@pytest.mark.parametrize("char", HOSTILE, ids=lambda char: f"U+{ord(char):04X}")
def test_no_such_character_is_printable(char: str) -> None:
    shown = printable(f"a{char}b")
    assert char not in shown
    assert shown.isascii()


def test_printable_characters_stay() -> None:
    for text in ("plain", "é漢字 ✔ → …", "a b", "\\u001b"):
        assert printable(text) == text


@given(st.text())
def test_every_printable_text_has_no_control_or_formatting_character(text: str) -> None:
    assert not {unicodedata.category(char) for char in printable(text)} & {
        "Cc",
        "Cf",
        "Cs",
        "Co",
        "Cn",
        "Zl",
        "Zp",
    }


def metrics(text: str) -> dict[str, Any]:
    return {"loss": 1.5, "step": text, text: text, "eval_loss": [text], "x": {text: text}}


def attestation_result(text: str) -> AttestationResult:
    fields = {
        "status": "fail",
        "policy_sha256": text,
        "job_spec_sha256": text,
        "recipient": text,
        "appraised_at": 0,
    }
    checks = (
        Check(1, "quote-format", text, CheckState.AFFIRMED, found=text),
        Check(2, "receipt-files", text, CheckState.CONTRAINDICATED, text, text, text),
        Check(3, text, text, CheckState.NOT_DEMANDED),
    )
    return cast(
        "AttestationResult",
        SimpleNamespace(
            **fields,
            expires_at=0,
            fresh=False,
            development_root=True,
            cautions=(text,),
            checks=checks,
        ),
    )


def show_progress(text: str) -> None:
    with TerminalProgress() as progress:
        progress.step(text)
        progress.line(text)
        progress.bytes_done(text, 5, 10)
        progress.end_bar()
        progress.metrics({text: text, "loss": text})
        progress.phase(text)


def print_audit(text: str) -> None:
    embedded = json.dumps({"services": {text: {"image": text, "environment": {text: text}}}})
    document = {"name": text, "docker_compose_file": embedded, "allowed_envs": [text], text: text}
    try:
        print_review(audit_compose(json.dumps(document).encode(), against=b"{}"), compared=True)
    except UsageError as error:
        console.print_error(error, as_json=False)


PEOPLE: dict[str, Callable[[str], object]] = {
    "a line": console.print_line,
    "a line of errors": lambda text: console.print_line(text, err=True),
    "a summary": lambda text: console.print_summary({text: text}, as_json=False),
    "an error": lambda text: console.print_error(
        UsageError(ErrorCode.USAGE, text, expected=text, found=text, hint=text), as_json=False
    ),
    "an error of a row": lambda text: console.print_error(
        DataError(ErrorCode.DATASET_INVALID, text, file=text, row=1, field=text), as_json=False
    ),
    "a bug": lambda text: console.print_bug(ValueError(text)),
    "an option": lambda text: run(["verify", f"--{text}"]),
    "a command": lambda text: run([text.replace("-", "x")]),
    "a file": lambda text: run(["verify", text.replace("\0", "").replace("-", "x") or "x"]),
    "progress": show_progress,
    "an appraisal": lambda text: print_attestation_result(attestation_result(text)),
    "metrics": lambda text: TerminalProgress().metrics(PrivateMetrics(metrics(text)).shown()),
    "an audit": print_audit,
    "a rich text": lambda text: SafeConsole(highlight=False).print(text, markup=False),
}


@contextlib.contextmanager
def captured() -> Iterator[Callable[[], str]]:
    # UTF-8 as a terminal has it; a lone surrogate that got through would raise here.
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield lambda: "".join(map(read, (out, err)))


def read(stream: io.TextIOWrapper[io.BytesIO]) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode()


@pytest.mark.parametrize("name", PEOPLE)
@settings(max_examples=12, deadline=None)
@given(text=texts)
def test_no_text_commands_the_terminal(name: str, text: str) -> None:
    with captured() as shown:
        PEOPLE[name](text)
        told = shown()
    assert told
    assert is_safe(told), ascii(told)


DOCUMENTS: dict[str, Callable[[str], object]] = {
    "an object": lambda text: console.print_json({text: [text, {text: text}]}),
    "a summary": lambda text: console.print_summary({text: text}, as_json=True),
    "an error": lambda text: console.print_error(
        UsageError(ErrorCode.USAGE, text, expected=text, found=text, hint=text), as_json=True
    ),
    "metrics": lambda text: console.print_json(dict(PrivateMetrics(metrics(text)).values)),
    "an option": lambda text: run(["verify", "--json", f"--{text}"]),
}


@pytest.mark.parametrize("name", DOCUMENTS)
@settings(max_examples=12, deadline=None)
@given(text=texts)
def test_json_is_one_line_of_printable_ascii(name: str, text: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        DOCUMENTS[name](text)
    line = out.getvalue()
    assert line.endswith("\n")
    assert line[:-1].isascii()
    assert line[:-1].isprintable()
    assert isinstance(json.loads(line), dict)


def test_a_status_has_no_text_of_its_own() -> None:
    """Its only text is a public code; the phase is one of a closed set."""
    with pytest.raises(ValueError, match="pattern"):
        Status(phase=Phase.FAILED, error="code\x1b[2J")


def test_nothing_but_the_console_prints() -> None:
    """Commands call `trainer.cli.console`; `typer.confirm` asks with a text of ours and a digest."""
    found = []
    for path in sorted(COMMANDS.glob("*.py")):
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in {
                "print",
                "Console",
                "typer.echo",
                "typer.secho",
                "sys.stdout.write",
                "sys.stderr.write",
            }:
                found.append(f"{path.name}:{node.lineno}: {name}")  # type: ignore[attr-defined]
    assert found == []
