"""A tree of plain values and tensors, such as an optimizer's state, as JSON and a table of tensors; no pickle.

JSON knows neither tuples nor keys that are numbers: they are written as `{"tuple": [...]}` and as pairs,
`{"map": [[key, value], ...]}`. A tensor is `{"tensor": name}`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue
from torch import Tensor


def flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> JsonValue:
    """The JSON of a tree.

    Args:
        value: dict with keys that are text or whole numbers, list, tuple, tensor, text, finite number, None.
        name: of the tree; what is in it is named by its path.
        tensors: gets the tensors.

    Raises:
        TypeError: anything else is in it.
    """
    match value:
        case Tensor():
            tensors[name] = value
            return {"tensor": name}
        case dict():
            return {"map": [[_key(key), flatten(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
        case list() | tuple():
            items: list[JsonValue] = [flatten(item, f"{name}/{at}", tensors) for at, item in enumerate(value)]
            return {"tuple": items} if isinstance(value, tuple) else items
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
        case _:
            raise TypeError(f"{name}: a {type(value).__name__} cannot be kept")


def unflatten(value: JsonValue, tensors: Mapping[str, Tensor]) -> Any:
    """The tree again.

    Raises:
        ValueError: not the JSON of a tree, or a tensor is missing.
    """
    match value:
        case {"tensor": str(name), **rest} if not rest and name in tensors:
            return tensors[name]
        case {"map": list(pairs), **rest} if not rest:
            return dict(_pair(pair, tensors) for pair in pairs)
        case {"tuple": list(items), **rest} if not rest:
            return tuple(unflatten(item, tensors) for item in items)
        case list():
            return [unflatten(item, tensors) for item in value]
        case None | bool() | int() | float() | str():
            return value
        case _:
            raise ValueError("not a tree")


def _key(key: object) -> str | int:
    if isinstance(key, str | int) and not isinstance(key, bool):
        return key
    raise TypeError(f"a key is a {type(key).__name__}")


def _pair(pair: JsonValue, tensors: Mapping[str, Tensor]) -> tuple[str | int, Any]:
    match pair:
        case [str() | int() as key, item]:
            return key, unflatten(item, tensors)
        case _:
            raise ValueError("not a pair")
