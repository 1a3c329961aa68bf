"""Versions of drivers and firmware: numbers with dots between them, compared one by one."""

from __future__ import annotations

import re
from typing import Final, Literal

_FORM: Final = {10: re.compile(r"[0-9]+(\.[0-9]+)*"), 16: re.compile(r"[0-9A-Fa-f]+(\.[0-9A-Fa-f]+)*")}
_MAX_CHARS: Final = 64


def reaches(version: str | None, least: str, *, base: Literal[10, 16]) -> bool:
    """Whether `version` is `least` or later.

    Args:
        version: what was found, such as `550.90.07`; None where nothing was.
        least: the least that will do; `any` is reached by whatever was found, also by nothing.
        base: 10 for drivers, 16 for VBIOS versions, whose parts are bytes in hex.

    A version that is unknown or of another form reaches nothing else: it cannot be compared.
    """
    if least == "any":
        return True
    if version is None or len(version) > _MAX_CHARS or not _FORM[base].fullmatch(version):
        return False
    return _numbers(version, base) >= _numbers(least, base)


def _numbers(version: str, base: int) -> list[int]:
    """The parts of a version, without zeros at the end: 550.90 and 550.90.00 are the same."""
    numbers = [int(part, base) for part in version.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers
