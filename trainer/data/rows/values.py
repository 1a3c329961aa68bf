"""Checks of single values. An error describes a refused value by type and length and never quotes it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, NoReturn

from trainer.data.rows.row import RowLocation
from trainer.encoding import parse_json
from trainer.errors import DataError, ErrorCode


class Unreadable(Enum):
    """An enumeration, because its member is the same object in every process."""

    VALUE = 0


UNREADABLE: Final = Unreadable.VALUE
"""Stands in a row for a value that its file holds and that cannot be read. No kind of row accepts it."""


def describe(value: object) -> str:
    """Describes a value by its type and length, without its content.

    >>> describe("secret"), describe([1, 2]), describe(None)
    ('text of 6 characters', 'a list of 2', 'null')
    """
    if value is None:
        return "null"
    if value is UNREADABLE:
        return "a value that cannot be read"
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


def row_error(
    location: RowLocation,
    reason: str,
    *,
    field: str | None = None,
    expected: str | None = None,
    found: str | None = None,
    hint: str | None = None,
) -> DataError:
    """Returns the error for a row that does not have the required form (`DATASET_ROW_INVALID`)."""
    code = ErrorCode.DATASET_ROW_INVALID
    return location.refuse(code, reason, field=field, expected=expected, found=found, hint=hint)


def refuse_value(location: RowLocation, field: str, expected: str, value: object) -> NoReturn:
    """Refuses the value of `field`, such as `messages[0].content`.

    Raises:
        DataError: always.
    """
    raise row_error(location, "wrong value", field=field, expected=expected, found=describe(value))


def is_encodable(text: str) -> bool:
    """Returns whether UTF-8 can encode the text: it has no lone surrogates, which JSON escapes can write."""
    if text.isascii():  # most texts, and known without a second pass
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_text(location: RowLocation, field: str, value: object, *, empty: bool = True) -> str:
    """Returns the value if it is text that UTF-8 can encode; `empty` admits the empty text.

    Raises:
        DataError: the value is not such a text.
    """
    if not isinstance(value, str) or (not empty and not value):
        refuse_value(location, field, "text" if empty else "text that is not empty", value)
    if not is_encodable(value):
        refuse_value(location, field, "text without lone surrogates", value)
    return value


def check_optional_text(location: RowLocation, field: str, value: object) -> str | None:
    """Returns the text, or None for null.

    Raises:
        DataError: the value is neither.
    """
    return None if value is None else check_text(location, field, value)


def check_objects(
    location: RowLocation, field: str, value: object, *, empty: bool = False
) -> list[dict[str, object]]:
    """Returns the value if it is a list of objects; `empty` admits the empty list.

    Raises:
        DataError: the value is no list, or an item, which the error names, is no object.
    """
    if not isinstance(value, list) or not (value or empty):
        refuse_value(location, field, "a list" if empty else "a list of at least one object", value)
    for number, item in enumerate(value):
        if not isinstance(item, dict):
            refuse_value(location, f"{field}[{number}]", "an object", item)
    return value


def check_keys(
    location: RowLocation, field: str, item: Mapping[str, object], known: tuple[str, ...]
) -> None:
    """Requires that a message has no other keys than the `known` ones, unless their value is null or empty.

    Raises:
        DataError: another key has a value. The error does not name it: a key may be part of the content.
    """
    others = [
        key for key, value in item.items() if key not in known and value not in (None, "", [], {})
    ]
    if others:
        raise row_error(
            location,
            "wrong keys",
            field=field,
            expected=f"only {', '.join(known)}",
            found=f"{len(others)} other keys",
            hint="leave keys of messages out with data.ignore_message_keys",
        )


def parse_json_text(location: RowLocation, field: str, value: str) -> object:
    """Parses the JSON text that a cell or a field holds.

    Raises:
        DataError: the text is not JSON.
    """
    try:
        return parse_json(value)
    except ValueError:
        error = row_error(
            location, "wrong value", field=field, expected="JSON text", found=describe(value)
        )
    # Raised outside the handler: the parser's error quotes the text, and would be attached as the context.
    raise error


def check_encodable(location: RowLocation, field: str, value: object) -> None:
    """Requires that UTF-8 can encode every text inside a JSON value, because templates serialise such values.

    Raises:
        DataError: a text cannot be encoded.
    """
    if isinstance(value, str):
        check_text(location, field, value)
    elif isinstance(value, list):
        for item in value:
            check_encodable(location, field, item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_encodable(location, field, key)
            check_encodable(location, field, item)


def remove_nulls(value: object) -> object:
    """Removes the keys whose value is null: a table gives every object the keys of all objects in its column."""
    if isinstance(value, list):
        return [remove_nulls(item) for item in value]
    if isinstance(value, dict):
        return {key: remove_nulls(item) for key, item in value.items() if item is not None}
    return value
