"""Nothing that is shipped, measured with or run by hand imports a test module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imported_modules(source: str) -> Iterator[str]:
    """Names that `import` and `from … import` statements anywhere in a module name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("folder", ["benchmarks", "scripts", "trainer"])
def test_no_module_imports_a_test(folder: str) -> None:
    files = sorted(ROOT.joinpath(folder).rglob("*.py"))
    assert files
    found = {
        str(path.relative_to(ROOT)): name
        for path in files
        for name in imported_modules(path.read_text("utf-8"))
        if name.split(".")[0] in {"tests", "conftest"} or name.split(".")[-1].startswith("test_")
    }
    assert found == {}


def test_imports_are_found_wherever_they_are_written() -> None:
    source = "import tests.a\ndef f():\n    from tests.b import c\n    from tests import d\n"
    assert sorted(imported_modules(source)) == ["tests", "tests.a", "tests.b"]
