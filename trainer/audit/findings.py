"""Findings, severities and changes, and how values are shown without their secrets."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from trainer.audit.nodes import Scalar
from trainer.audit.secrets import MASK, is_secret_name, masked
from trainer.encoding import sha256_hex

_MAX_SHOWN: Final = 160


class Severity(StrEnum):
    """Severity of a finding, worst first."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    INFO = "info"

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return tuple(Severity).index(self)


@dataclass(frozen=True)
class Finding:
    """One thing that a reviewer should know. `line` counts within the text that `path` begins in."""

    severity: Severity
    code: str
    line: int
    path: str
    message: str
    hint: str


@dataclass(frozen=True)
class Change:
    """A value that differs between two files; None in the file that does not have it."""

    path: str
    old: str | None
    new: str | None


def shown(value: Scalar, name: str = "") -> str:
    """Returns a value on one line, for a terminal.

    Secrets are masked, long texts replaced by their digest, and control characters escaped.

    Args:
        value: the value.
        name: what it is called; decides whether it is a secret.
    """
    if value not in (None, "") and not isinstance(value, bool) and is_secret_name(name):
        return MASK
    if not isinstance(value, str):
        return json.dumps(value)
    if "\n" in value or len(value) > _MAX_SHOWN:
        return f"{value.count(chr(10)) + 1} lines, sha256 {sha256_hex(value.encode())}"
    text = masked(value)
    # Quotes distinguish a text from the number or word that it would read as: "1.10" from 1.10.
    reads_as_json = text in {"", "true", "false", "null"} or re.fullmatch(r"[-+]?[\d.]+", text)
    return printable(json.dumps(text) if reads_as_json else text)


def printable(text: str) -> str:
    """Returns `text` without characters that move a terminal's cursor or change its colours."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
