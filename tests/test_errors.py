"""Errors that several parts raise in one form."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.errors import ErrorCode, ExitCode, missing_package

PACKAGE = Path(__file__).parents[1] / "trainer"


@pytest.mark.parametrize(
    ("otherwise", "hint"),
    [
        (None, "pip install 'confidential-trainer[stores]'"),
        (
            "use a directory",
            "pip install 'confidential-trainer[stores]', or use a directory",
        ),
    ],
)
def test_a_package_of_an_extra_that_is_missing_is_named_with_the_extra(
    otherwise: str | None, hint: str
) -> None:
    error = missing_package("obstore", "stores", "an object store", otherwise=otherwise)
    assert (error.exit_code, error.code) == (ExitCode.USAGE, ErrorCode.USAGE)
    assert str(error) == "an object store needs a package: expected obstore, got none"
    assert error.hint == hint


def test_nobody_else_says_how_an_extra_is_installed() -> None:
    texts = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    naming = {path.name for path, text in texts.items() if "confidential-trainer[" in text}
    assert naming == {"errors.py"}
