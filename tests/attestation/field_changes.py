"""Every single-field change of a JSON document, by rule: what a document with one thing changed can look like."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

Step = str | int
Path = tuple[Step, ...]


def changes(document: Any) -> Iterator[tuple[str, Any]]:
    """Yields (name, document with one change): each value by each of its rules, each key missing, and one more."""
    for path, value in _places(document):
        for rule, other in _others(value):
            yield f"{_written(path)}: {rule}", _with(document, path, other)
        if path:
            yield f"{_written(path)}: missing", _without(document, path)


def inside_text(document: dict[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    """Yields the changes of a document that another one contains as JSON text."""
    for name, changed in changes(json.loads(document[key])):
        yield f"{key} > {name}", document | {key: json.dumps(changed)}


def _places(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    yield path, value
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for step, child in inner:
        yield from _places(child, (*path, step))


def _others(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields other values: of the same type where there is one, then of another type."""
    match value:
        case dict():
            yield "one more key", {**value, "more": 1}
        case list():
            yield "one more", [*value, value[-1] if value else "more"]
        case bool():
            yield "the opposite", not value
            yield "a number", int(value)
        case int():
            yield "one more", value + 1
        case str():
            yield "another last character", value[:-1] + ("0" if value[-1:] != "0" else "1")
        case None:
            yield "a text", "more"


def _with(document: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(document)
    _parent(changed, path)[path[-1]] = value
    return changed


def _without(document: Any, path: Path) -> Any:
    changed = copy.deepcopy(document)
    del _parent(changed, path)[path[-1]]
    return changed


def _parent(document: Any, path: Path) -> Any:
    for step in path[:-1]:
        document = document[step]
    return document


def _written(path: Path) -> str:
    return ".".join(map(str, path)) or "document"
