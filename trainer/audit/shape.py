"""Compares a compose file with the shipped one, and yields whatever differs and is not in the published list.

A list of dangerous settings is never complete: compose and dstack have hundreds of keys, and get new ones. So the
verdict comes from what the project ships and tests, and `VARIATIONS` says what a deployment may choose.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import Final

import yaml

from trainer.audit.document import EMBEDDED, SERVICE, SERVICES, Document
from trainer.audit.findings import shown
from trainer.audit.json_text import parse_json_nodes
from trainer.audit.nodes import Node, child_path
from trainer.audit.secrets import argument_names
from trainer.audit.variations import VARIATIONS
from trainer.audit.yaml_text import parse_yaml_nodes
from trainer.deployment import SHIPPED_COMPOSE, DeploymentProfile, render_app_compose

TEXT_KEY: Final = "(text)"
"""Last key of the place of a deviation of the compose file's text, rather than of a value in it."""

_TEXT: Final = f"{EMBEDDED}.{TEXT_KEY}"
_UNCLEAR: Final[Mapping[type[yaml.Token], str]] = {
    yaml.AnchorToken: "an anchor",
    yaml.AliasToken: "an alias",
    yaml.TagToken: "a tag",
    yaml.DirectiveToken: "a directive",
    yaml.DocumentStartToken: "the marker of a document",
    yaml.DocumentEndToken: "the marker of a document",
}
_NOTHING: Final = "nothing"
_MAX_SHOWN: Final = 100


@dataclass(frozen=True)
class Deviation:
    """A place at which a compose file is not as shipped.

    Args:
        place: path in the shipped file, as in `VARIATIONS`.
        node: what is there; without a value where something is missing.
        expected: in words.
        found: in words, without secrets.
    """

    place: str
    node: Node
    expected: str
    found: str


def deviations(document: Document) -> tuple[Deviation, ...]:
    """Returns everything that differs from the shipped files of the document's profile, but for `VARIATIONS`."""
    comparison = _ShapeComparison(document)
    found: list[Deviation] = []
    if document.app is not None:
        found += comparison.of_mapping(document.app, _shipped_app(document.profile), "")
    if document.compose.value is not None:
        found += comparison.of_mapping(document.compose, _shipped_compose(), EMBEDDED)
        found += _unclear_text(document)
    return tuple(found)


@cache
def _shipped_compose() -> Node:
    return parse_yaml_nodes(SHIPPED_COMPOSE, what="shipped compose file", path=EMBEDDED)


@cache
def _shipped_app(profile: DeploymentProfile | None) -> Node:
    rendered = render_app_compose(SHIPPED_COMPOSE, profile or DeploymentProfile.SEALED)
    return parse_json_nodes(rendered.decode(), what="shipped app-compose file")


def _unclear_text(document: Document) -> Iterator[Deviation]:
    """Yields what another YAML reader than this one could take for something else.

    The container engine's reader is not this one. Where the two could differ, the file would be reviewed as one
    text and run as another, so only the plain forms pass: none of `_UNCLEAR`, no merge key, no other line break
    than a line feed, no character that is not printed.
    """
    path = document.compose.path
    for token in yaml.scan(document.compose_text, Loader=yaml.SafeLoader):
        is_merge_key = isinstance(token, yaml.ScalarToken) and token.value == "<<"
        if form := "a merge key" if is_merge_key else _UNCLEAR.get(type(token)):
            yield Deviation(_TEXT, Node(None, token.start_mark.line + 1, path), "plain YAML", form)
    for number, line in enumerate(document.compose_text.split("\n"), 1):
        if not line.replace("\t", " ").isprintable():
            yield Deviation(
                _TEXT, Node(None, number, path), "printable characters", "others in this line"
            )


class _ShapeComparison:
    """Compares trees with the shipped ones; the grammars of some places depend on the rest of the document."""

    def __init__(self, document: Document) -> None:
        self._document = document

    def differences(
        self, node: Node, shipped: Node, place: str, name: str = ""
    ) -> Iterator[Deviation]:
        """Yields the deviations at and below `place`; `name` decides whether a value there is a secret."""
        variation = VARIATIONS.get(place)
        if variation is not None and variation.accepts is not None:
            if not variation.accepts(node, self._document):
                yield Deviation(place, node, variation.grammar, _describe(node, name))
        elif isinstance(shipped.value, Mapping) and node.is_mapping:
            yield from self.of_mapping(node, shipped, place)
        elif isinstance(shipped.value, tuple) and isinstance(node.value, tuple):
            yield from self._elements(node, node.value, shipped.value, place, name)
        elif type(node.value) is not type(shipped.value) or node.value != shipped.value:
            yield Deviation(place, node, _describe_shipped(shipped), _describe(node, name))

    def of_mapping(self, node: Node, shipped: Node, place: str) -> Iterator[Deviation]:
        """Yields the deviations of the entries of a mapping, and those that are missing."""
        yield from self._entries(node, shipped, place)
        yield from _missing(node, shipped, place)

    def _entries(self, node: Node, shipped: Node, place: str) -> Iterator[Deviation]:
        for key, child in node.items():
            inner = child_path(place, key)
            if shipped.get(key).value is not None or inner in VARIATIONS:
                yield from self.differences(child, shipped.get(key), inner, key)
            elif place == SERVICES:
                yield Deviation(inner, child, "one service, trainer", f"the service {shown(key)}")
                yield from self._entries(child, shipped.get("trainer"), SERVICE)
            else:
                yield Deviation(inner, child, _NOTHING, _describe(child, key))

    def _elements(
        self, node: Node, found: tuple[Node, ...], wanted: tuple[Node, ...], place: str, name: str
    ) -> Iterator[Deviation]:
        """Yields the deviations between the common start and the common end of two lists."""

        def same(index: int, other: int) -> bool:
            inner = child_path(place, other % len(wanted))
            return next(self.differences(found[index], wanted[other], inner), None) is None

        shorter = min(len(found), len(wanted))
        start = next((each for each in range(shorter) if not same(each, each)), shorter)
        limit = shorter - start
        end = next((each for each in range(limit) if not same(-1 - each, -1 - each)), limit)
        options = [*argument_names([each.text for each in found])]
        for index, other in zip_longest(
            range(start, len(found) - end), range(start, len(wanted) - end)
        ):
            if index is None:
                missing = Node(None, node.line, child_path(node.path, other))
                yield Deviation(
                    child_path(place, other), missing, _describe_shipped(wanted[other]), _NOTHING
                )
            elif other is None:
                described = _describe(found[index], options[index] or name)
                yield Deviation(child_path(place, index), found[index], _NOTHING, described)
            else:
                secret = options[index] or name
                yield from self.differences(
                    found[index], wanted[other], child_path(place, other), secret
                )


def _missing(node: Node, shipped: Node, place: str) -> Iterator[Deviation]:
    present = {key for key, _ in node.items()}
    for key, wanted in shipped.items():
        inner = child_path(place, key)
        variation = VARIATIONS.get(inner)
        if key in present or (variation is not None and variation.is_optional):
            continue
        expected = variation.grammar if variation is not None else _describe_shipped(wanted)
        yield Deviation(
            inner, Node(None, node.line, child_path(node.path, key)), expected, _NOTHING
        )


def _describe(node: Node, name: str) -> str:
    """Returns what a finding shows of a value: elements of short lists, keys of mappings, never a secret."""
    if isinstance(node.value, Mapping):
        return _listed("mapping", [shown(key) for key in node.value])
    if not isinstance(node.value, tuple):
        return shown(node.value, name)
    options = argument_names([each.text for each in node.value])
    shown_elements = [
        "…" if isinstance(each.value, tuple | Mapping) else shown(each.value, option or name)
        for each, option in zip(node.value, options, strict=True)
    ]
    return _listed("list", shown_elements)


def _listed(kind: str, words: list[str]) -> str:
    text = ", ".join(words)
    return (
        f"a {kind}: {text}" if 0 < len(text) <= _MAX_SHOWN else f"a {kind} of {len(words)} entries"
    )


def _describe_shipped(node: Node) -> str:
    if not isinstance(node.value, tuple | Mapping):
        return shown(node.value)
    text = json.dumps(node.plain_value(), separators=(",", ":"))
    return text if len(text) <= _MAX_SHOWN else "what is shipped"
