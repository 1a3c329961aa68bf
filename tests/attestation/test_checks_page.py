"""The pages that list or count checks say what the code checks and what the tests attack.

`UPDATE_DOCS=1 pytest tests/attestation` writes docs/checks.md, the table of EAR claims in trainer/SPEC.md and the
figures in README.md anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.attestation.attacks import attacks
from tests.attestation.checks_page import checks_page, claims_table
from trainer.attestation.catalogue import DATASET_CHECKS

ROOT = Path(__file__).parents[2]
CLAIMS_TABLE = re.compile(r"(?<=\n\n)\| submodule \| claim \| checks \|\n(?:\|.*\|\n)+")
FIGURES = {
    re.compile(r"\b\d+(?= (?:numbered checks|codes)\b)"): len(DATASET_CHECKS),
    re.compile(r"\b\d+(?= attacks, each on a single field)"): len(attacks()),
}


def hold_page(name: str, expected: str) -> None:
    page = ROOT / name
    if os.environ.get("UPDATE_DOCS") == "1":
        page.write_text(expected)
    assert page.read_text() == expected


def test_the_page_of_checks_is_up_to_date() -> None:
    hold_page("docs/checks.md", checks_page())


def test_the_specification_lists_the_checks_of_each_claim() -> None:
    text, count = CLAIMS_TABLE.subn(
        lambda _: claims_table(), (ROOT / "trainer" / "SPEC.md").read_text()
    )
    assert count == 1
    hold_page("trainer/SPEC.md", text)


def test_the_readme_counts_checks_and_attacks() -> None:
    text = (ROOT / "README.md").read_text()
    for figure, number in FIGURES.items():
        text, count = figure.subn(str(number), text)
        assert count
    hold_page("README.md", text)
