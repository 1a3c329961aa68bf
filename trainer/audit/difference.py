"""How two compose files differ in meaning: formatting, comments and forms that mean the same do not count."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from trainer.audit.alignment import REFERENCE_KEYS, aligned, same_port
from trainer.audit.document import EMBEDDED, Document
from trainer.audit.findings import Change, printable, shown
from trainer.audit.literal_secrets import PAIRS, pairs
from trainer.audit.nodes import Node, child_path
from trainer.audit.secrets import argument_names
from trainer.spec import JOB_VARIABLE

_TEXT: Final = re.compile(rf"(?:^|\.)(?:configs\.[^.]+\.content|environment\.{JOB_VARIABLE})$")
_EMPTY: Final = "(empty)"


def difference(old: Document, new: Document) -> tuple[Change, ...]:
    """Returns every value that differs, ordered by path; secrets are masked.

    An app-compose file and a bare docker-compose file are compared by what both have: the compose file.
    """
    # The embedded compose file is compared as a tree of its own: as text, one changed word would show all of it.
    comparison = _Comparison(old, new)
    if old.app is None or new.app is None:
        changes = [*comparison.changes(old.compose, new.compose, "", "")]
    else:
        changes = [*comparison.changes(old.compose, new.compose, EMBEDDED, "")]
        one, other = (
            Node({key: node for key, node in app.items() if key != EMBEDDED}, 1, "")
            for app in (old.app, new.app)
        )
        changes += comparison.changes(one, other, "", "")
    return tuple(sorted(changes, key=lambda change: change.path))


class _Comparison:
    """Compares two trees; remembers which contents it has seen, so that equal ones are recognised by a number."""

    def __init__(self, old: Document, new: Document) -> None:
        self._old, self._new = old, new
        self._numbers: dict[object, int] = {}
        self._known: dict[
            int, tuple[int, Node]
        ] = {}  # holds the node too: its id() must not be used again

    def identity(self, node: Node) -> int:
        """Returns the same number for the same content. In Python `True == 1`; in a compose file it is not."""
        if id(node) not in self._known:
            content = node.value
            key: object = (type(content), content)
            if isinstance(content, tuple):
                key = ("sequence", *(self.identity(each) for each in content))
            elif isinstance(content, Mapping):
                key = (
                    "mapping",
                    frozenset((name, self.identity(each)) for name, each in content.items()),
                )
            self._known[id(node)] = self._numbers.setdefault(key, len(self._numbers)), node
        return self._known[id(node)][0]

    def changes(self, old: Node | None, new: Node | None, path: str, name: str) -> Iterator[Change]:
        """Yields the changes at and below `path`; `name` decides whether a value there is a secret."""
        before, after = _normal(old, path, name, self._old), _normal(new, path, name, self._new)
        if before and after and self.identity(before) == self.identity(after):
            return
        one, other = (None if node is None else node.value for node in (before, after))
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            for key in sorted(one.keys() | other.keys()):
                yield from self.changes(one.get(key), other.get(key), child_path(path, key), key)
        elif isinstance(one, tuple) and isinstance(other, tuple):
            # In a list of arguments, an option's name decides whether the argument after it is a secret.
            plain = "" if name in REFERENCE_KEYS else name
            names: dict[int, str] = {}  # id of a node → name of the option that it is the value of
            for nodes in (one, other):
                options = argument_names([node.text for node in nodes])
                names |= {
                    id(node): option or plain for node, option in zip(nodes, options, strict=True)
                }
            for place, old_one, new_one in aligned(name, one, other, self.identity):
                secret = next((names[id(each)] for each in (new_one, old_one) if each), plain)
                yield from self.changes(old_one, new_one, child_path(path, place), secret)
        else:
            yield from self._replaced(before, after, path, name)

    def _replaced(
        self, old: Node | None, new: Node | None, path: str, name: str
    ) -> Iterator[Change]:
        """Yields the changes of a value that was added, removed, or has another kind than before."""
        leaf = old, new
        # A collection is shown as changes of its parts against an empty one, so that each secret in it is
        # masked.
        for node, is_new in ((old, False), (new, True)):
            if node is not None and isinstance(node.value, tuple | Mapping) and node.value:
                leaf = (leaf[0], None) if is_new else (None, leaf[1])
                empty = Node(() if isinstance(node.value, tuple) else {}, node.line, node.path)
                yield from self.changes(*((empty, node) if is_new else (node, empty)), path, name)
        if leaf != (None, None):
            yield Change(printable(path), *(_shown(node, name) for node in leaf))


def _shown(node: Node | None, name: str) -> str | None:
    if node is None:
        return None
    return _EMPTY if isinstance(node.value, tuple | Mapping) else shown(node.value, name)


def _normal(node: Node | None, path: str, name: str, document: Document) -> Node | None:
    """Returns a node in the form in which equivalent forms are compared."""
    if node is None:
        return None
    if name in PAIRS:
        return Node(dict(pairs(node)), node.line, node.path)
    if name == "ports" and isinstance(node.value, tuple):
        return Node(tuple(same_port(each) for each in node.value), node.line, node.path)
    return document.embedded(node) if _TEXT.search(path) else node
