"""The values that a key accepts, in words: for the table of keys in trainer/SPEC.md and for errors."""

from __future__ import annotations

import json
from enum import EnumType
from types import NoneType, UnionType
from typing import Annotated, Final, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

_BOUNDS: Final = (("≥", "ge"), (">", "gt"), ("≤", "le"), ("<", "lt"))
_NAMES: Final = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    NoneType: "null",
    None: "null",
}


def describe_field(field: FieldInfo) -> str:
    """Returns what a field of a section accepts, such as `integer, ≥ 1, ≤ 1024`."""
    return _with_bounds(field.annotation, field.metadata)


def is_union(field: FieldInfo) -> bool:
    """Returns whether a field accepts values of several forms."""
    return get_origin(field.annotation) in (UnionType, Union)


def _with_bounds(annotation: object, metadata: object) -> str:
    parts = metadata if isinstance(metadata, list | tuple) else ()
    fields = [
        inner
        for part in parts
        for inner in (part.metadata if isinstance(part, FieldInfo) else [part])
    ]
    bounds = [
        f"{mark} {getattr(part, name)}"
        for mark, name in _BOUNDS
        for part in fields
        if hasattr(part, name)
    ]
    patterns = [
        f"of the form `{part.pattern}`" for part in fields if getattr(part, "pattern", None)
    ]
    return ", ".join([_describe(annotation), *bounds, *patterns])


def _describe(annotation: object) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin in (UnionType, Union):
        return " or ".join(map(_describe, arguments))
    if origin is Annotated:
        return _with_bounds(arguments[0], arguments[1:])
    if origin is tuple:
        return f"list of {_describe(arguments[0])}"
    if isinstance(annotation, EnumType):
        return " or ".join(f"`{value}`" for value in map(str, annotation))
    return _NAMES.get(annotation, "mapping")  # type: ignore[call-overload,no-any-return]
