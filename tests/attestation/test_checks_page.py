"""docs/checks.md says what the code checks and what the tests attack."""

from __future__ import annotations

import os
from pathlib import Path

from tests.attestation.checks_page import checks_page


def test_the_page_of_checks_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "checks.md"
    if os.environ.get("UPDATE_DOCS") == "1":
        page.write_text(checks_page())
    assert page.read_text() == checks_page()
