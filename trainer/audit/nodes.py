"""The tree that the rules read: values with their line and path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn, TypeAlias

from trainer.errors import ErrorCode, UsageError

MAX_PATH: Final = 2048
"""Characters of a path: every node below a long key carries it."""

Scalar: TypeAlias = str | int | float | bool | None

_PLAIN_KEY = re.compile(r"[\w/-]+")


@dataclass(frozen=True)
class Node:
    """One value of a document.

    Args:
        value: a scalar, the elements of a sequence, or the entries of a mapping in their order.
        line: 1-based line of its key, or of itself where it has none.
        path: its place in the document, such as `services.trainer.ports[0]`; empty for the document.
    """

    value: Scalar | tuple[Node, ...] | Mapping[str, Node]
    line: int
    path: str

    @property
    def is_mapping(self) -> bool:
        """Whether it has entries by key."""
        return isinstance(self.value, Mapping)

    @property
    def text(self) -> str:
        """A scalar as text; empty for nothing and for collections."""
        if self.value is None or isinstance(self.value, tuple | Mapping):
            return ""
        return str(self.value).lower() if isinstance(self.value, bool) else str(self.value)

    def get(self, key: str) -> Node:
        """Returns the entry `key`, or a node of no value on the line of this one."""
        if isinstance(self.value, Mapping) and key in self.value:
            return self.value[key]
        # Never None: a rule can ask for a key below a missing one, and a finding about it still has a line.
        return Node(None, self.line, child_path(self.path, key))

    def items(self) -> Iterator[tuple[str, Node]]:
        """Yields the entries of a mapping; none of anything else."""
        if isinstance(self.value, Mapping):
            yield from self.value.items()

    def children(self) -> Iterator[Node]:
        """Yields the values of a mapping; none of anything else."""
        if isinstance(self.value, Mapping):
            yield from self.value.values()

    def elements(self) -> Iterator[Node]:
        """Yields the elements of a sequence; a scalar counts as a sequence of one, lest a rule overlook it."""
        if isinstance(self.value, tuple):
            yield from self.value
        elif self.value is not None and not self.is_mapping:
            yield self

    def plain_value(self) -> object:
        """Returns the value in Python's types: scalars, list, dict."""
        if isinstance(self.value, tuple):
            return [element.plain_value() for element in self.value]
        if isinstance(self.value, Mapping):
            return {key: entry.plain_value() for key, entry in self.value.items()}
        return self.value

    def scalars(self) -> Iterator[Node]:
        """Yields all scalars in and below this node, in order."""
        if isinstance(self.value, tuple):
            for element in self.value:
                yield from element.scalars()
        elif isinstance(self.value, Mapping):
            for entry in self.value.values():
                yield from entry.scalars()
        else:
            yield self


def child_path(path: str, key: str | int) -> str:
    """Returns the path of an entry or element; keys other than plain words are quoted to keep paths distinct."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if not _PLAIN_KEY.fullmatch(key):
        return f"{path}[{json.dumps(key)}]"
    return f"{path}.{key}" if path else key


def refuse(what: str, line: int, problem: str) -> NoReturn:
    """Refuses a document.

    Raises:
        UsageError: always, with the line.
    """
    raise UsageError(ErrorCode.USAGE, f"{what}, line {line}: {problem}")
