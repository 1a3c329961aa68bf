"""The recipes of CONTRIBUTING.md name every file that an addition touches.

Each recipe has an example that is in the package. The code of the package is searched for the example's name, and
every file that contains it must be in the recipe's list.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trainer"
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
RECIPES = dict(re.findall(r"^### (Add an? .+?)\n(.+?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL))


def code_words(path: Path) -> Iterator[str]:
    """Every identifier and text constant of a module; docstrings and comments may mention what they like."""
    tree = ast.parse(path.read_text("utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
        ):
            yield node.value
        for field in ("id", "attr", "name", "arg", "module"):
            if isinstance(word := getattr(node, field, None), str):
                yield word


def example_names(recipe: str) -> list[str]:
    (line,) = re.findall(r"^Example: .+$", recipe, re.MULTILINE)
    return re.findall(r"`([^`]+)`", line)


def listed_paths(recipe: str) -> list[str]:
    return re.findall(r"`((?:trainer|tests|docs)/[^`]+|README\.md)`", recipe)


def is_listed(path: str, patterns: list[str]) -> bool:
    return any(
        re.fullmatch(re.escape(pattern).replace("NAME", r"\w+"), path) for pattern in patterns
    )


def test_there_is_a_recipe_for_each_addition() -> None:
    assert set(RECIPES) == {
        "Add a training method",
        "Add an engine",
        "Add a check",
        "Add a policy demand",
        "Add a row kind",
        "Add a file format",
        "Add a carrier",
    }


@pytest.mark.parametrize("title", RECIPES)
def test_the_example_is_in_no_file_that_the_recipe_leaves_out(title: str) -> None:
    names, patterns = example_names(RECIPES[title]), listed_paths(RECIPES[title])
    containing = {
        str(path.relative_to(ROOT))
        for path in sorted(PACKAGE.rglob("*.py"))
        for word in code_words(path)
        if any(re.search(rf"(?<![a-z]){re.escape(name)}(?![a-z])", word) for name in names)
    }
    assert containing, f"nothing in the package is called {names}"
    assert {path for path in containing if not is_listed(path, patterns)} == set()


@pytest.mark.parametrize("title", RECIPES)
def test_every_listed_file_exists(title: str) -> None:
    missing = [
        path
        for path in listed_paths(RECIPES[title])
        if "NAME" not in path and not (ROOT / path).exists()
    ]
    assert missing == []
