"""How two compose files differ in meaning: formatting, comments and forms that mean the same do not count."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from trainer.attestation.audit.document import EMBEDDED, Document
from trainer.attestation.audit.environment_rules import PAIRS, pairs
from trainer.attestation.audit.findings import Change, printable, shown
from trainer.attestation.audit.nodes import Node, Scalar, child_path
from trainer.attestation.audit.yaml_text import parse_yaml_nodes
from trainer.errors import UsageError

Leaves = dict[str, tuple[str, Scalar]]
"""Path → (name that decides whether the value is a secret, value)."""


def difference(old: Document, new: Document) -> tuple[Change, ...]:
    """Every value that differs, by path; secrets are masked.

    An app-compose file and a bare docker-compose file are compared by what both have: the compose file.
    """
    whole = old.app is not None and new.app is not None
    before, after = (_document_leaves(document, whole=whole) for document in (old, new))
    paths = sorted(
        path for path in before.keys() | after.keys() if _identity(before, path) != _identity(after, path)
    )
    return tuple(Change(printable(path), _shown(before, path), _shown(after, path)) for path in paths)


def _identity(leaves: Leaves, path: str) -> tuple[type, Scalar] | None:
    """What counts as equal: in Python `True == 1`, in a compose file it is not."""
    if path not in leaves:
        return None
    value = leaves[path][1]
    return type(value), value


def _shown(leaves: Leaves, path: str) -> str | None:
    if path not in leaves:
        return None
    name, value = leaves[path]
    return shown(value, name)


def _document_leaves(document: Document, *, whole: bool) -> Leaves:
    compose = dict(_leaves(document.compose, EMBEDDED if whole else "", ""))
    if not whole or document.app is None:
        return compose
    app = {key: node for key, node in document.app.items() if key != EMBEDDED}
    return dict(_leaves(Node(app, 1, ""), "", "")) | compose


def _leaves(node: Node, path: str, name: str) -> Iterator[tuple[str, tuple[str, Scalar]]]:
    if name in PAIRS:
        node = Node(dict(pairs(node)), node.line, node.path)
    if re.search(r"(?:^|\.)configs\.[^.]+\.content$", path):
        node = _embedded_mapping(node)
    if isinstance(node.value, tuple):
        for index, element in enumerate(node.value):
            yield from _leaves(element, child_path(path, index), name)
    elif isinstance(node.value, Mapping):
        for key, entry in node.value.items():
            yield from _leaves(entry, child_path(path, key), key)
    if not isinstance(node.value, tuple | Mapping):
        yield path, (name, node.value)
    elif not node.value:
        yield path, (name, "(empty)")


def _embedded_mapping(node: Node) -> Node:
    """A config whose text is a mapping (a job spec), as that mapping: reformatting it changes nothing."""
    try:
        inner = parse_yaml_nodes(node.text, what="config", path=node.path)
    except UsageError:
        return node
    return inner if inner.is_mapping else node
