"""YAML without its traps: no aliases, tags or duplicate keys, numbers as in YAML 1.2, bounded time."""

from __future__ import annotations

import re
from typing import Final

import yaml

from trainer.errors import ErrorCode, UsageError

_MAX_TOKENS: Final = 20_000
"""Bounds the time that PyYAML takes, well below a second; a job spec has hundreds."""
_MAX_DEPTH: Final = 64


def parse_yaml(data: bytes, *, what: str, limit: int, code: ErrorCode) -> object:
    """Parse a YAML document without aliases, tags or duplicate keys; numbers such as `2e-4` are numbers.

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
        return yaml.load(data, Loader=_StrictLoader)  # noqa: S506 -- a SafeLoader with fewer features
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(code, f"the {what} is not acceptable YAML: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader without duplicate keys, anchors, aliases or timestamps, YAML 1.2 numbers; bounded."""

    tokens_seen = 0

    def fetch_more_tokens(self) -> None:
        # The scanner looks at every open bracket for each token: depth and number together bound the time.
        self.tokens_seen += 1
        if self.tokens_seen > _MAX_TOKENS or self.flow_level > _MAX_DEPTH or len(self.indents) > _MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="too large or too deep", problem_mark=self.get_mark())
        super().fetch_more_tokens()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise yaml.constructor.ConstructorError(
                None, None, "anchors and aliases are not accepted", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, "keys must be text", key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return dict(super().construct_mapping(node, deep=deep))


# YAML 1.1 reads `yes` as true, `1:30` as 90, `010` as 8 and `2e-4` as text; the core schema of YAML 1.2 does not.
_StrictLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+0123456789."),
):
    _first_characters = [character.replace("\0", "") for character in _first]
    _StrictLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first_characters
    )
