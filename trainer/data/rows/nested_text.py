"""Lists and objects that a cell holds as text: JSON, or a Python literal, as pandas writes them to CSV."""

from __future__ import annotations

import ast
import re
import warnings
from contextlib import suppress
from typing import Final

from trainer.data.rows.row import RowLocation
from trainer.data.rows.values import describe, row_error
from trainer.encoding import parse_json

MAX_LITERAL_CHARACTERS: Final = 1 << 22
"""Longest text that is parsed as a Python literal: its syntax tree takes about a hundred times its size."""

_START_OF_MESSAGES: Final = re.compile(
    r"""\s*(?:\[\s*)?\{\s*["'](?:role|content|from|value)["']\s*:"""
)


def parse_nested_text(location: RowLocation, field: str, text: str) -> object:
    """Parses the text of a cell that holds a list or an object; empty text is null.

    Raises:
        DataError: the text is neither JSON nor a Python literal of the types of JSON.
    """
    if not text.strip():
        return None
    with suppress(ValueError):
        return parse_json(text)
    with suppress(ValueError):
        return parse_literal(text)
    # Raised outside the handlers: a parser's error may quote the text, and would be attached as the context.
    raise row_error(
        location,
        "wrong value",
        field=field,
        expected="JSON text, or a Python literal",
        found=describe(text),
        hint="pandas' to_json(orient='records', lines=True) writes lists as lists",
    )


def begins_like_messages(text: str) -> bool:
    """Returns whether a text begins as a message, or a list of messages, that is written out as text.

    >>> begins_like_messages('[{"role": "user", '), begins_like_messages("[1] says")
    (True, False)
    """
    return _START_OF_MESSAGES.match(text) is not None


def parse_literal(text: str) -> object:
    """Parses a Python literal of null, true, false, numbers, texts, lists, and objects with distinct keys.

    Raises:
        ValueError: the text is something else, or too long. The message holds no part of the text.
    """
    if len(text) > MAX_LITERAL_CHARACTERS:
        raise ValueError("too long for a Python literal")
    with suppress(SyntaxError, ValueError, RecursionError, MemoryError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning about an escape quotes it
        return _convert(ast.parse(text.strip(), mode="eval").body)
    raise ValueError("not a Python literal of JSON's types")


def _convert(node: ast.expr) -> object:
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=items):
            return [_convert(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            texts = [
                key.value
                for key in keys
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            ]
            if len(set(texts)) == len(keys):
                return dict(zip(texts, map(_convert, values), strict=True))
    raise ValueError("another expression")
