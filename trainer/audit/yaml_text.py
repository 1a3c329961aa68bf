"""YAML as compose files use it: anchors, aliases and merge keys, but bounded, and no key twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import yaml

from trainer.audit.nodes import MAX_DEPTH, MAX_NODES, MAX_PATH, Node, Scalar, child_path, refuse

MAX_TOKENS: Final = 20_000
"""Of all YAML texts of one document together: bounds the time that PyYAML takes. A compose file has hundreds."""

MAX_CHARACTERS: Final = 1 << 19
_TOO_LARGE: Final = "too large or too deep"
_TAG: Final = "tag:yaml.org,2002:"
_MAX_DIGITS: Final = 15


@dataclass
class Budget:
    """How many tokens may still be read: shared by texts inside of texts, so that many small ones cost no more."""

    tokens: int = MAX_TOKENS

    @property
    def exhausted(self) -> bool:
        """Whether a text was refused for want of it."""
        return self.tokens < 0


class _Loader(yaml.SafeLoader):
    """PyYAML's scanner and composer with the scalars of YAML 1.2, as Docker Compose reads them; bounded."""

    def __init__(self, text: str, budget: Budget) -> None:
        super().__init__(text)
        self._budget = budget

    def fetch_more_tokens(self) -> None:
        # The scanner looks at every open bracket for each token: without a bound on depth, time is quadratic.
        self._budget.tokens -= 1
        if self._budget.exhausted or self.flow_level > MAX_DEPTH or len(self.indents) > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=_TOO_LARGE, problem_mark=self.get_mark())
        super().fetch_more_tokens()


_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_pattern})$"), list(_first))


def parse_yaml_nodes(text: str, *, what: str, path: str = "", budget: Budget | None = None) -> Node:
    """Parse one YAML document; lines count from 1 in `text`.

    Args:
        text: the document.
        what: name of the document in errors.
        path: path of its root.
        budget: what may be spent on it; None for a whole one of its own.

    Raises:
        UsageError: not YAML, several documents, a key twice, an unknown tag, or too large as it is or expanded.
    """
    try:
        root = _Loader(text, budget or Budget()).get_single_node()
    except yaml.MarkedYAMLError as error:
        refuse(what, _line_of(error), f"not acceptable YAML: {error.problem or error.context}")
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        refuse(what, 1, f"not acceptable YAML: {type(error).__name__}")
    if root is None:
        refuse(what, 1, "the document is empty")
    return _Expansion(what).node(root, path, _start(root), 0)


def _line_of(error: yaml.MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return mark.line + 1 if mark else 1


def _start(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


@dataclass
class _Expansion:
    """Turns PyYAML's graph into a tree, and counts."""

    what: str
    count: int = 0
    characters: int = 0

    def node(self, node: yaml.Node, path: str, line: int, depth: int) -> Node:
        self.count += 1
        if self.count > MAX_NODES or depth > MAX_DEPTH or len(path) > MAX_PATH:
            refuse(self.what, line, f"{_TOO_LARGE} once its aliases are expanded")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, line, depth)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, "seq")
            elements = enumerate(node.value)
            return Node(
                tuple(
                    self.node(each, child_path(path, index), _start(each), depth + 1) for index, each in elements
                ),
                line,
                path,
            )
        return Node(self._scalar(node), line, path)

    def _mapping(self, node: yaml.MappingNode, path: str, line: int, depth: int) -> Node:
        self._check_tag(node, "map")
        entries: dict[str, Node] = {}
        for key, (key_line, value) in self._pairs(node, depth).items():
            entries[key] = self.node(value, child_path(path, key), key_line, depth + 1)
        return Node(entries, line, path)

    def _pairs(self, node: yaml.MappingNode, depth: int) -> dict[str, tuple[int, yaml.Node]]:
        """The entries, own ones before merged ones: `<<` never overrides what is written beside it."""
        own: dict[str, tuple[int, yaml.Node]] = {}
        merged: dict[str, tuple[int, yaml.Node]] = {}
        merges = 0
        for key_node, value in node.value:
            if key_node.tag == f"{_TAG}merge":
                merges += 1
                for source in self._sources(value):
                    for key, entry in self._merged(source, depth).items():
                        merged.setdefault(key, entry)
                continue
            key = self._key(key_node)
            if key in own:
                refuse(self.what, _start(key_node), "a key stands twice")
            own[key] = (_start(key_node), value)
        if merges > 1:
            refuse(self.what, _start(node), "the key << stands twice")
        return own | {key: entry for key, entry in merged.items() if key not in own}

    def _merged(self, source: yaml.MappingNode, depth: int) -> dict[str, tuple[int, yaml.Node]]:
        # Merging costs time even where everything is overridden, so it is counted like nodes.
        self.count += 1 + len(source.value)
        if self.count > MAX_NODES or depth > MAX_DEPTH:
            refuse(self.what, _start(source), f"{_TOO_LARGE} once its aliases are expanded")
        return self._pairs(source, depth + 1)

    def _sources(self, value: yaml.Node) -> Iterator[yaml.MappingNode]:
        candidates = value.value if isinstance(value, yaml.SequenceNode) else [value]
        for candidate in candidates:
            if not isinstance(candidate, yaml.MappingNode):
                refuse(self.what, _start(candidate), "<< must name a mapping")
            yield candidate

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.value == "<<":
            refuse(self.what, _start(node), "keys must be plain text")
        self._scalar(node)
        return str(node.value)

    def _scalar(self, node: yaml.Node) -> Scalar:
        text, kind = str(node.value), str(node.tag).removeprefix(_TAG)
        self.characters += len(text)
        if self.characters > MAX_CHARACTERS:
            refuse(self.what, _start(node), "too large once its aliases are expanded")
        if not text.isprintable() and re.search("[\ud800-\udfff]", text):
            refuse(self.what, _start(node), "half of a surrogate pair")
        if kind == "bool":
            return text.lower() == "true"
        if kind == "null":
            return None
        if kind == "int" and len(text) <= _MAX_DIGITS and re.fullmatch(r"[-+]?\d+", text, re.ASCII):
            return int(text)
        if kind not in {"str", "int", "float", "merge"}:
            refuse(self.what, _start(node), "a tag that has no meaning here")
        return text

    def _check_tag(self, node: yaml.Node, kind: str) -> None:
        if node.tag != _TAG + kind:
            refuse(self.what, _start(node), "a tag that has no meaning here")
