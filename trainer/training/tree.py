"""Nested plain values with tensors, such as an optimizer's state, as JSON and a table of tensors; no pickle.

A pickle runs code when it is read, and a checkpoint comes back from a place that an operator can write to. JSON
and safetensors hold data only. Types that JSON does not have are written as an object with one key:

    tuple            {"tuple": [...]}
    dict             {"map": [[key, value], ...]}       keys may be numbers
    tensor           {"tensor": name in the table}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue
from torch import Tensor


def flatten_tree(value: Any, name: str, tensors: dict[str, Tensor]) -> JsonValue:
    """Converts a tree to JSON, and collects its tensors.

    Args:
        value: dict with text or integer keys, list, tuple, tensor, text, bool, integer, finite float, or None.
        name: name of the tree; each tensor in it is named by its path, `name/key/...`.
        tensors: receives the tensors by name.

    Raises:
        TypeError: the tree contains anything else.
    """
    match value:
        case Tensor():
            tensors[name] = value
            return {"tensor": name}
        case dict():
            for key in value:
                # A bool is an int in Python, and would come back as one.
                if isinstance(key, bool) or not isinstance(key, str | int):
                    raise TypeError(f"a key is a {type(key).__name__}")
            return {
                "map": [
                    [key, flatten_tree(item, f"{name}/{key}", tensors)]
                    for key, item in value.items()
                ]
            }
        case list() | tuple():
            items: list[JsonValue] = [
                flatten_tree(item, f"{name}/{index}", tensors) for index, item in enumerate(value)
            ]
            return {"tuple": items} if isinstance(value, tuple) else items
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):  # JSON has no infinity and no NaN
            return value
        case _:
            raise TypeError(f"{name}: a {type(value).__name__} cannot be kept")


def unflatten_tree(value: JsonValue, tensors: Mapping[str, Tensor]) -> Any:
    """Converts the JSON of a tree back to the tree.

    Args:
        value: return value of `flatten_tree`.
        tensors: the tensors by name.

    Raises:
        ValueError: this is not the JSON of a tree, or a tensor is missing.
    """
    # `rest` must be empty: an object with other keys is not one that `flatten_tree` writes.
    match value:
        case {"tensor": str(name), **rest} if not rest and name in tensors:
            return tensors[name]
        case {"map": list(pairs), **rest} if not rest:
            return dict(_read_pair(pair, tensors) for pair in pairs)
        case {"tuple": list(items), **rest} if not rest:
            return tuple(unflatten_tree(item, tensors) for item in items)
        case list():
            return [unflatten_tree(item, tensors) for item in value]
        case None | bool() | int() | float() | str():
            return value
        case _:
            raise ValueError("not a tree")


def _read_pair(pair: JsonValue, tensors: Mapping[str, Tensor]) -> tuple[str | int, Any]:
    match pair:
        case [str() | int() as key, item]:
            return key, unflatten_tree(item, tensors)
        case _:
            raise ValueError("not a pair of key and value")
