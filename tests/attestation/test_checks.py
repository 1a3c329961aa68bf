"""The lists of checks: numbered alike in docstring, code and catalogue; each recorded once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainer.attestation import verifier
from trainer.attestation.catalogue import DATASET_CHECKS, QUOTE_CODES, RECEIPT_CHECKS
from trainer.attestation.checks import CheckCode, Ledger


def test_numbers_follow_the_list_in_the_docstring_and_the_tags_in_the_code() -> None:
    listed = re.findall(r"(\d\d) ([a-z0-9-]+)", verifier.appraise.__doc__ or "")
    expected = {(f"{number:02}", definition.code.value) for number, definition in enumerate(DATASET_CHECKS, 1)}
    assert set(listed) == expected
    assert sorted(tags("check")) == sorted(expected)


def test_receipt_numbers_follow_the_list_in_the_docstring_and_the_tags_in_the_code() -> None:
    listed = re.findall(r"(\d\d) ([a-z-]+-[a-z]+)", verifier.appraise_receipt.__doc__ or "")
    expected = {(f"{number:02}", definition.code.value) for number, definition in enumerate(RECEIPT_CHECKS, 1)}
    assert set(listed) == {(number, code) for number, code in expected if int(number) > len(QUOTE_CODES)}
    assert sorted(tags("receipt check")) == sorted(listed)


def tags(word: str) -> list[tuple[str, str]]:
    folder = Path(verifier.__file__).parent
    text = "\n".join(path.read_text() for path in sorted(folder.rglob("*.py")))
    return re.findall(rf"^ +# {word} (\d\d) ([a-z0-9-]+)$", text, re.MULTILINE)


def test_a_ledger_records_each_check_once() -> None:
    ledger = Ledger(DATASET_CHECKS)
    ledger.judge(CheckCode.NONCE, True, expected="a", found="a")
    with pytest.raises(ValueError, match="twice"):
        ledger.leave_open(CheckCode.NONCE)
