"""Parses JSON into nodes with line numbers; `parse_json` decides which documents are accepted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final

from trainer.audit.nodes import MAX_PATH, Node, child_path, refuse
from trainer.encoding import parse_json
from trainer.strict_yaml import MAX_DEPTH, MAX_NODES

_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s\[\]{}:,"]+|\n')
_LINE: Final = re.compile(r"at line (\d+)")

Token = tuple[str, int]


def parse_json_nodes(text: str, *, what: str) -> Node:
    """Parses a JSON document into nodes with line numbers.

    Raises:
        UsageError: not JSON, a repeated key, half of a surrogate pair, or nested too deeply.
    """
    # The strict parser runs first, so that the tokenizer below may assume valid JSON without repeated keys.
    try:
        parse_json(text)
    except ValueError as error:
        found = _LINE.search(str(error))
        refuse(what, int(found[1]) if found else 1, str(error))
    return _value(_tokens(text, what), "", what, 0)


def _tokens(text: str, what: str) -> Iterator[Token]:
    line, tokens = 1, []
    for match in _TOKEN.finditer(text):
        if match[0] == "\n":
            line += 1
            continue
        tokens.append((match[0], line))
        # At most four tokens for each node: key, colon, value, comma.
        if len(tokens) > 4 * MAX_NODES:
            refuse(what, line, "too large")
    return iter(tokens)


def _value(
    tokens: Iterator[Token], path: str, what: str, depth: int, first: Token | None = None
) -> Node:
    """Returns the value that begins with `first`, or else with the next token; assumes valid JSON."""
    word, line = first or next(tokens)
    if depth > MAX_DEPTH or len(path) > MAX_PATH:
        refuse(what, line, "nested too deeply")
    if word == "{":
        return Node(_entries(tokens, path, what, depth), line, path)
    if word == "[":
        elements: list[Node] = []
        while (token := next(tokens))[0] != "]":
            if token[0] != ",":
                elements.append(
                    _value(tokens, child_path(path, len(elements)), what, depth + 1, token)
                )
        return Node(tuple(elements), line, path)
    value = json.loads(word)
    if isinstance(value, str):
        _check_text(value, what, line)
    return Node(value, line, path)


def _entries(tokens: Iterator[Token], path: str, what: str, depth: int) -> dict[str, Node]:
    entries: dict[str, Node] = {}
    while (token := next(tokens))[0] != "}":
        word, line = token
        if word == ",":
            continue
        key = json.loads(word)
        _check_text(key, what, line)
        next(tokens)  # the colon
        value = _value(tokens, child_path(path, key), what, depth + 1)
        entries[key] = Node(value.value, line, value.path)
    return entries


def _check_text(text: str, what: str, line: int) -> None:
    # A lone surrogate has no UTF-8 encoding: printing the finding would fail.
    if re.search("[\ud800-\udfff]", text):
        refuse(what, line, "half of a surrogate pair")
