"""Versions of drivers and firmware."""

from __future__ import annotations

import pytest

from trainer.attestation.nvidia.versions import reaches


@pytest.mark.parametrize(
    ("version", "least", "reached"),
    [
        ("550.90.07", "550.90.07", True),
        ("550.90.7", "550.90.07", True),
        ("550.100", "550.90.07", True),
        ("550.90", "550.90.00", True),
        ("550.90.00", "550.90", True),
        ("550.90", "550.90.01", False),
        ("99.99", "550.90", False),
        ("0.0", "0.0", True),
        (None, "550.90", False),
        ("", "550.90", False),
        ("9999.90-beta", "550.90", False),
        ("+9999.90", "550.90", False),
        ("9_999.90", "550.90", False),
        ("\uff19\uff19\uff19\uff19.90", "550.90", False),
        ("9999.90\n", "550.90", False),
        ("9" * 65, "550.90", False),
        (None, "any", True),
        ("whatever", "any", True),
    ],
)
def test_versions_compare_number_by_number(version: str | None, least: str, reached: bool) -> None:
    assert reaches(version, least, base=10) is reached


@pytest.mark.parametrize(
    ("version", "reached"),
    [
        ("96.00.9F.00.01", True),
        ("96.00.9f.00.01", True),
        ("96.00.A0.00.00", True),
        ("96.00.9E.FF.FF", False),
    ],
)
def test_vbios_versions_compare_in_hex(version: str, reached: bool) -> None:
    assert reaches(version, "96.00.9F.00.01", base=16) is reached
    assert reaches(version, "any", base=16)
