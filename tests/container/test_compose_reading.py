"""What the audit lets pass, compose reads as the audit does: the same text changed at random, read by both."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.audit.mutations import shipped
from trainer.audit import EMBEDDED, Severity, audit_compose
from trainer.audit.document import read_document
from trainer.deployment import DeploymentProfile
from trainer.errors import UsageError

ACCEPTED = 40
APP = json.loads(shipped("docker-compose.yaml", DeploymentProfile.KMS))
PIECES = [
    *"\t #|>-+!&*%'\"\\:,[]{}?@`~=<$1a\n",
    "\n\n",
    "  ",
    "\n  ",
    "- ",
    '""',
    "#x",
    "\u00e9",
    "\u00a0",
    "\u3000",
]

Read = Callable[[str], Any]


@pytest.fixture
def read(plugins: Path, tmp_path: Path) -> Read:
    """What compose makes of a text."""

    def canonical(text: str) -> Any:
        path = tmp_path / "docker-compose.yaml"
        path.write_text(text, encoding="utf-8", newline="")
        command = [
            str(plugins / "docker-compose"),
            "--file",
            str(path),
            "config",
            "--format",
            "json",
        ]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    return canonical


def passes(text: str) -> bool:
    try:
        return not audit_compose(json.dumps(APP | {EMBEDDED: text}).encode()).reaches(Severity.HIGH)
    except UsageError:
        return False


def changed_texts(chance: random.Random) -> Iterator[str]:
    """The shipped text with up to three changes of a few characters or of two lines."""
    while True:
        text = APP[EMBEDDED]
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            place, kind = chance.randrange(len(text)), chance.choice("iiiiddrl")
            if kind == "l":
                lines = text.split("\n")
                one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
                lines[one], lines[other] = lines[other], lines[one]
                text = "\n".join(lines)
            else:
                rest = text[place + (0 if kind == "i" else chance.choice((1, 2, 4))) :]
                text = text[:place] + ("" if kind == "d" else chance.choice(PIECES)) + rest
        yield text


def test_compose_reads_what_passes_as_the_audit_does(read: Read) -> None:
    accepted = 0
    for text in changed_texts(random.Random(1)):
        if text == APP[EMBEDDED] or not passes(text):
            continue
        as_audited = read_document(text.encode()).compose.plain_value()
        assert read(text) == read(json.dumps(as_audited)), text
        accepted += 1
        if accepted == ACCEPTED:
            break
