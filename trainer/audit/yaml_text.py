"""YAML as the audit reads it: `trainer.strict_yaml` decides what is acceptable, this adds paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trainer.audit.nodes import MAX_PATH, Node, Scalar, child_path, refuse
from trainer.strict_yaml import TokenBudget, YamlError, YamlNode, load_yaml_tree

_MAX_INTEGER_CHARACTERS: Final = 15


def parse_yaml_nodes(
    text: str, *, what: str, path: str = "", budget: TokenBudget | None = None
) -> Node:
    """Parses one YAML document; lines count from 1 in `text`.

    Args:
        text: the document.
        what: name of the document in errors.
        path: path of its root.
        budget: tokens that may be spent on it; None for a budget of its own.

    Raises:
        UsageError: not YAML, several documents, a duplicate key, a tag, or too large as it is or expanded.
    """
    try:
        return _to_node(load_yaml_tree(text, compose_features=True, budget=budget), path)
    except YamlError as error:
        refuse(what, error.line, f"not acceptable YAML: {error.problem}")


def _to_node(tree: YamlNode, path: str) -> Node:
    if len(path) > MAX_PATH:
        raise YamlError(tree.line, "too large or too deep: its path is too long")
    content = tree.content
    if isinstance(content, Mapping):
        entries = {key: _to_node(entry, child_path(path, key)) for key, entry in content.items()}
        return Node(entries, tree.line, path)
    if isinstance(content, tuple):
        elements = (
            _to_node(element, child_path(path, index)) for index, element in enumerate(content)
        )
        return Node(tuple(elements), tree.line, path)
    # Fractions and long integers stay text, since `1.10` must not become 1.1.
    scalar: Scalar = content
    if tree.kind in {"bool", "null"} or (
        tree.kind == "int" and len(content) <= _MAX_INTEGER_CHARACTERS
    ):
        value = tree.plain_value()
        scalar = value if isinstance(value, bool | int) else None
    return Node(scalar, tree.line, path)
