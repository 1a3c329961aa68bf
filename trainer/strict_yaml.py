"""The only YAML loader: core schema of YAML 1.2, unique keys, no tags, bounded in time, depth and size.

It reads job specs and policies, in a subset that all readers of YAML take alike (`parse_yaml`; trainer/SPEC.md,
YAML), and compose files, which may use more of YAML (`load_yaml_tree`). Neither source is trusted.

    PyYAML's scanner ──► PyYAML's nodes ──► YamlNode tree, aliases expanded ──► plain values, or the audit's nodes
    tokens, depth        anchors            keys, tags, nodes, characters

Why not `yaml.safe_load`: it keeps the last of two equal keys, reads `yes` as true and `010` as 8 (YAML 1.1), and a
kilobyte of aliases can expand to gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import yaml

from trainer.errors import ErrorCode, UsageError
from trainer.yaml_scalars import FIRST_CHARACTERS, SCALAR_PATTERNS, is_ambiguous

MAX_TOKENS: Final = 20_000
"""Tokens of one document, or of all texts that share a `TokenBudget`; a job spec has hundreds."""

MAX_DEPTH: Final = 64

MAX_NODES: Final = 20_000
"""Nodes of one document after its aliases are expanded."""

MAX_CHARACTERS: Final = 1 << 19
"""Characters of all scalars after aliases are expanded; a longer text without aliases may have its own length."""

_TAG: Final = "tag:yaml.org,2002:"
_TOO_LARGE: Final = "too large or too deep"

YamlKind: TypeAlias = Literal["str", "int", "float", "bool", "null", "sequence", "mapping"]
YamlContent: TypeAlias = "str | tuple[YamlNode, ...] | Mapping[str, YamlNode]"

_OTHER_LINE_BREAKS: Final = re.compile("[\x85\u2028\u2029]")
"""Characters that end a line in YAML 1.1 and do not in YAML 1.2."""


class YamlError(ValueError):
    """A text is refused.

    Args:
        line: 1-based line of the problem.
        problem: what is wrong there.
    """

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line = line
        self.problem = problem


@dataclass
class TokenBudget:
    """Tokens that may still be read. Texts inside of texts share one, so that many small ones cost no more."""

    tokens: int = MAX_TOKENS

    @property
    def exhausted(self) -> bool:
        """Whether a text was refused because the budget was used up."""
        return self.tokens < 0


@dataclass(frozen=True)
class YamlNode:
    """One value of a document.

    Args:
        kind: kind of the value.
        content: text of a scalar as written, elements of a sequence, or entries of a mapping in their order.
        line: 1-based line of its key, or of the value itself where it has no key.
    """

    kind: YamlKind
    content: YamlContent
    line: int

    def plain_value(self) -> object:
        """Returns the value in Python's types: str, int, float, bool, None, list, dict.

        Raises:
            YamlError: a number that Python does not convert.
        """
        if isinstance(self.content, Mapping):
            return {key: node.plain_value() for key, node in self.content.items()}
        if isinstance(self.content, tuple):
            return [node.plain_value() for node in self.content]
        try:
            match self.kind:
                case "bool":
                    return self.content.lower() == "true"
                case "null":
                    return None
                case "int":
                    return int(self.content)
                case "float":
                    return float(self.content)
                case _:
                    return self.content
        except ValueError:  # Python converts no integer of more than 4300 digits
            raise YamlError(self.line, "a number that is too long") from None


def parse_yaml(data: bytes, *, what: str, limit: int, code: ErrorCode) -> object:
    """Parses a document in the subset of YAML that every reader takes alike; returns plain values.

    Args:
        data: the text.
        what: name of the document in errors.
        limit: largest size in bytes.
        code: code of the error for a text that is refused.

    Raises:
        UsageError: with `code`, or `spec-too-large` above `limit` bytes.
    """
    if len(data) > limit:
        raise UsageError(
            ErrorCode.SPEC_TOO_LARGE,
            f"the {what} is too large",
            expected=f"at most {limit} bytes",
            found="more",
        )
    try:
        try:
            text = data.decode()  # PyYAML would also guess UTF-16 from its first bytes
        except UnicodeDecodeError as error:
            raise YamlError(data.count(b"\n", 0, error.start) + 1, "not UTF-8") from error
        return load_yaml_tree(text, compose_features=False).plain_value()
    except YamlError as error:
        raise UsageError(code, f"the {what} is not acceptable YAML: {error}") from error


def load_yaml_tree(
    text: str, *, compose_features: bool, budget: TokenBudget | None = None
) -> YamlNode:
    """Loads one document as a tree in which aliases and merge keys are resolved.

    Args:
        text: the document.
        compose_features: whether to accept what compose files use: anchors, aliases, merge keys (`<<`), keys that
            look like numbers, which become text, and scalars that other readers take for something else.
        budget: tokens that may be spent on it; None for a budget of its own.

    Raises:
        YamlError: not YAML, empty, several documents, a duplicate key, a tag, or too large as it is or expanded.
    """
    if not compose_features and (found := _OTHER_LINE_BREAKS.search(text)):
        raise YamlError(
            text.count("\n", 0, found.start()) + 1, "a line break other than LF or CR LF"
        )
    try:
        root = _BoundedLoader(
            text, budget or TokenBudget(), aliases=compose_features
        ).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(
            mark.line + 1 if mark else 1, str(error.problem or error.context)
        ) from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise YamlError(1, type(error).__name__) from error
    if root is None:
        raise YamlError(1, "the document is empty")
    return _Expansion(compose_features, max(MAX_CHARACTERS, len(text))).expand(
        root, _line_of(root), 0
    )


def _line_of(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's scanner and composer with the core schema of YAML 1.2 and a bound on tokens and depth."""

    def __init__(self, text: str, budget: TokenBudget, *, aliases: bool) -> None:
        super().__init__(text)
        self._budget = budget
        self._aliases = aliases

    def fetch_more_tokens(self) -> None:
        # The scanner looks at every open bracket for each token: without a bound on depth, time is quadratic.
        self._budget.tokens -= 1
        if self._budget.exhausted or self.flow_level > MAX_DEPTH or len(self.indents) > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=_TOO_LARGE, problem_mark=self.get_mark())
        super().fetch_more_tokens()

    def process_directives(self) -> object:
        if self.check_token(yaml.DirectiveToken):
            mark = self.peek_token().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="directives are not accepted", problem_mark=mark)
        return super().process_directives()  # type: ignore[no-untyped-call]

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if not self._aliases and getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases are not accepted", problem_mark=event.start_mark
            )
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(
                problem="tags are not accepted", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)


_BoundedLoader.yaml_implicit_resolvers = {}
for _kind, _pattern in SCALAR_PATTERNS.items():
    _BoundedLoader.add_implicit_resolver(_TAG + _kind, _pattern, FIRST_CHARACTERS[_kind])


@dataclass
class _Expansion:
    """Turns PyYAML's graph of nodes into a tree, and counts what that costs.

    Args:
        compose_features: as for `load_yaml_tree`.
        max_characters: bound on the characters of all scalars.
    """

    compose_features: bool
    max_characters: int
    nodes: int = 0
    characters: int = 0

    def expand(self, node: yaml.Node, line: int, depth: int) -> YamlNode:
        """Returns the tree below `node`, which is `depth` levels below the root.

        An alias is the same PyYAML node again, possibly one that contains itself; the bounds end the expansion.
        """
        self._count(1, line, depth)
        if isinstance(node, yaml.MappingNode):
            entries = self._entries(node, depth)
            return YamlNode(
                "mapping",
                {
                    key: self.expand(value, key_line, depth + 1)
                    for key, (key_line, value) in entries.items()
                },
                line,
            )
        if isinstance(node, yaml.SequenceNode):
            elements = (
                self.expand(element, _line_of(element), depth + 1) for element in node.value
            )
            return YamlNode("sequence", tuple(elements), line)
        return YamlNode(self._scalar_kind(node), str(node.value), line)

    def _count(self, nodes: int, line: int, depth: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise YamlError(line, f"{_TOO_LARGE} once its aliases are expanded")

    def _entries(self, node: yaml.MappingNode, depth: int) -> dict[str, tuple[int, yaml.Node]]:
        """Returns line of the key and value of each entry: own entries first, then merged ones.

        A merge key never overrides an own entry, and an earlier merged mapping wins over a later one
        (https://yaml.org/type/merge.html).
        """
        own: dict[str, tuple[int, yaml.Node]] = {}
        merged: dict[str, tuple[int, yaml.Node]] = {}
        has_merge_key = False
        for key_node, value in node.value:
            line = _line_of(key_node)
            if key_node.tag == f"{_TAG}merge":
                if not self.compose_features:
                    raise YamlError(line, "merge keys are not accepted")
                if has_merge_key:
                    raise YamlError(line, "the key << occurs twice")
                has_merge_key = True
                for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if not isinstance(source, yaml.MappingNode):
                        raise YamlError(_line_of(source), "<< must name a mapping")
                    # Merging costs time even where every entry is overridden, so it counts as nodes do.
                    self._count(1 + len(source.value), _line_of(source), depth)
                    for key, entry in self._entries(source, depth + 1).items():
                        merged.setdefault(key, entry)
                continue
            # A quoted "<<" would be an ordinary key here and a merge key for other readers.
            is_text = isinstance(key_node, yaml.ScalarNode) and key_node.value != "<<"
            if not is_text or (self._scalar_kind(key_node) != "str" and not self.compose_features):
                raise YamlError(line, "keys must be text")
            key = str(key_node.value)
            if key in own:
                raise YamlError(line, f"the key {key[:64]!r} occurs twice")
            own[key] = (line, value)
        return own | {key: entry for key, entry in merged.items() if key not in own}

    def _scalar_kind(self, node: yaml.Node) -> YamlKind:
        """Checks a scalar and returns its kind, which follows from its text alone."""
        text, kind = str(node.value), str(node.tag).removeprefix(_TAG)
        self.characters += len(text)
        if self.characters > self.max_characters:
            raise YamlError(_line_of(node), "too large once its aliases are expanded")
        if not text.isprintable() and re.search("[\ud800-\udfff]", text):
            raise YamlError(_line_of(node), "half of a surrogate pair")
        is_plain = isinstance(node, yaml.ScalarNode) and node.style is None
        if is_plain and not self.compose_features and is_ambiguous(text):
            raise YamlError(
                _line_of(node),
                f"{text[:64]!r} without quotes: readers of YAML take it for different values. "
                "Write text in quotes, truth values as true or false, and numbers as in JSON",
            )
        if kind in {"bool", "null", "int", "float"}:
            return kind  # type: ignore[return-value]  # one of the kinds just compared with
        return "str"
