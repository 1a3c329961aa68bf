"""Fixtures that all tests share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Folder of real evidence that nobody on this project made; tests that need it skip where it is absent."""
    folder = Path(__file__).parents[1].parent / "shared" / "vectors"
    if not folder.is_dir():
        pytest.skip("the public vectors (../shared/vectors) are not here")
    return folder
