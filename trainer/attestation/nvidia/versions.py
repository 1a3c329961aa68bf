"""Versions of drivers and firmware: numbers with dots between them, compared number by number."""

from __future__ import annotations

import re
from typing import Final, Literal

_FORM: Final = {
    10: re.compile(r"[0-9]+(\.[0-9]+)*"),
    16: re.compile(r"[0-9A-Fa-f]+(\.[0-9A-Fa-f]+)*"),
}
_MAX_CHARS: Final = 64


def reaches(version: str | None, minimum: str, *, base: Literal[10, 16]) -> bool:
    """Returns whether `version` is `minimum` or later.

    A version that is missing or malformed reaches no minimum but `any`, as it cannot be compared.

    Args:
        version: such as `550.90.07`; None where the evidence has none.
        minimum: the lowest accepted version; `any` accepts every version, and none.
        base: 10 for drivers, 16 for VBIOS versions, whose parts are bytes in hex.
    """
    if minimum == "any":
        return True
    if version is None or len(version) > _MAX_CHARS or not _FORM[base].fullmatch(version):
        return False
    return _numbers(version, base) >= _numbers(minimum, base)


def _numbers(version: str, base: int) -> list[int]:
    """Returns the parts of a version without zeros at the end: 550.90 and 550.90.00 are the same."""
    numbers = [int(part, base) for part in version.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers
