"""Checks of single values. What is refused is described by type and length, never quoted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from trainer.data.rows.row import Row
from trainer.encoding import parse_json
from trainer.errors import DataError, ErrorCode


def describe(value: object) -> str:
    """What a value is, without what it says: its type and its length.

    >>> describe("secret"), describe([1, 2]), describe(None)
    ('text of 6 characters', 'a list of 2', 'null')
    """
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"text of {len(value)} characters"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)} keys"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, bool):
        return "true or false"
    return "a number" if isinstance(value, int | float) else "a value of another type"


def refused(
    row: Row,
    reason: str,
    *,
    field: str | None = None,
    expected: str | None = None,
    found: str | None = None,
    hint: str | None = None,
) -> DataError:
    """The error for a row that is not of the agreed form."""
    code = ErrorCode.DATASET_ROW_INVALID
    return row.refuse(code, reason, field=field, expected=expected, found=found, hint=hint)


def wrong(row: Row, where: str, expected: str, value: object) -> NoReturn:
    """Refuse the value at `where`.

    Raises:
        DataError: always.
    """
    raise refused(row, "wrong value", field=where, expected=expected, found=describe(value))


def text(row: Row, where: str, value: object, *, empty: bool = True) -> str:
    """The value, if it is text that can be encoded (and not empty, unless that is allowed).

    Raises:
        DataError: it is not.
    """
    if not isinstance(value, str) or (not empty and not value):
        wrong(row, where, "text" if empty else "text that is not empty", value)
    if not value.isascii() and not _encodable(value):
        wrong(row, where, "text without lone surrogates", value)
    return value


def optional_text(row: Row, where: str, value: object) -> str | None:
    """Text, or None where there is none.

    Raises:
        DataError: it is something else.
    """
    return None if value is None else text(row, where, value)


def objects(row: Row, where: str, value: object, *, empty: bool = False) -> list[dict[str, object]]:
    """The value, if it is a list of objects, none of which is empty of keys.

    Raises:
        DataError: it is not; names the first item that is none.
    """
    if not isinstance(value, list) or not (value or empty):
        wrong(row, where, "a list" if empty else "a list of at least one object", value)
    for number, item in enumerate(value):
        if not isinstance(item, dict):
            wrong(row, f"{where}[{number}]", "an object", item)
    return value


def json_text(row: Row, where: str, value: str) -> object:
    """The value that a JSON text in a cell or field stands for.

    Raises:
        DataError: it is no JSON.
    """
    try:
        return parse_json(value)
    except ValueError:
        problem = refused(row, "wrong value", field=where, expected="JSON text", found=describe(value))
    raise problem


def check_encodable(row: Row, where: str, value: object) -> None:
    """Demand that every text inside a JSON value can be encoded: templates write such values out.

    Raises:
        DataError: one cannot.
    """
    if isinstance(value, str):
        text(row, where, value)
    elif isinstance(value, list):
        for item in value:
            check_encodable(row, where, item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_encodable(row, where, key)
            check_encodable(row, where, item)


def without_nulls(value: object) -> object:
    """The value without the keys whose value is null: tables give every object the keys of all others."""
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _encodable(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
