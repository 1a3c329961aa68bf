"""What the columns of a table mean where `datasets` has described them in its schema.

`datasets` stores more types than Arrow has: labels as numbers, JSON as text, and until its version 4 a sequence of
objects as one object of lists. Its own class `Features` reads the description, whatever version wrote it. Nothing
else of `datasets` is used: its loaders lock and write cache files, and pyarrow reads the same tables without.

Importing `datasets` takes about a second, so it is imported where a schema has such a description.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from trainer.data.rows.data_file import DataFile
from trainer.encoding import parse_json
from trainer.errors import DataError, ErrorCode, missing_package

_DESCRIPTION: Final = b"huggingface"

Convert = Callable[[Any], Any]
"""Turns a value as pyarrow gives it into the value that was stored. Raises `ValueError` if it cannot."""


def column_converters(schema: Any, data_file: DataFile) -> Mapping[str, Convert]:
    """Returns the function that converts the values of each column which needs that.

    Raises:
        DataError: the description is not one of `datasets`.
        UsageError: there is one, and `datasets` is not installed.
    """
    if _DESCRIPTION not in (schema.metadata or {}):
        return {}
    datasets = import_package("datasets", data_file)
    try:
        features = datasets.Features.from_arrow_schema(schema)
        described = json.loads(schema.metadata[_DESCRIPTION]).get("info", {}).get("features") or {}
        found = {
            name: _converter(datasets, feature, described.get(name))
            for name, feature in features.items()
        }
    except Exception:  # noqa: BLE001 -- a description may be anything, and the library's errors quote it
        found = None
    if found is None:
        raise DataError(
            ErrorCode.DATASET_INVALID,
            "the description of the columns cannot be read",
            file=data_file.name,
            expected="one that datasets wrote",
            found="something else",
            hint="load the file with datasets and save it again",
        )
    return {name: convert for name, convert in found.items() if convert is not None}


def import_package(name: str, data_file: DataFile, *, modules: tuple[str, ...] = ()) -> Any:
    """Returns a package that only some files need, after importing some of its modules.

    Raises:
        UsageError: it is not installed.
    """
    try:
        for module in modules:
            importlib.import_module(f"{name}.{module}")
        return importlib.import_module(name)
    except ImportError as error:
        otherwise = "convert the file to JSONL"
        raise missing_package(name, "validate", data_file.name, otherwise=otherwise) from error


def _converter(datasets: Any, feature: Any, described: Any) -> Convert | None:
    """Returns what converts the values of a column; None if its values are what they seem.

    Args:
        datasets: the package.
        feature: the type of the column, as `Features` gives it.
        described: the type as written. `Features` turns a sequence of objects into the object of lists that it is
            stored as, so that only this says which of both was meant.
    """
    convert = _stored_converter(datasets, feature)
    if not _is_sequence_of_objects(described):
        return convert
    return lambda value: _transpose(convert(value) if convert else value)


def _stored_converter(datasets: Any, feature: Any) -> Convert | None:
    if isinstance(feature, datasets.ClassLabel):
        return lambda value: None if value is None else feature.int2str(value)
    if isinstance(feature, datasets.Json):
        return lambda value: parse_json(value) if isinstance(value, str) else value
    if isinstance(feature, datasets.List | datasets.LargeList):
        convert_item = _stored_converter(datasets, feature.feature)
        return convert_item and (
            lambda value: None if value is None else [convert_item(item) for item in value]
        )
    if isinstance(feature, dict):
        converters = {name: _stored_converter(datasets, field) for name, field in feature.items()}
        needed = {name: convert for name, convert in converters.items() if convert is not None}
        return (lambda value: _convert_fields(value, needed)) if needed else None
    return None


def _convert_fields(value: Any, converters: Mapping[str, Convert]) -> Any:
    if value is None:
        return None
    return value | {name: convert(value[name]) for name, convert in converters.items()}


def _is_sequence_of_objects(described: Any) -> bool:
    item = described.get("feature") if isinstance(described, dict) else None
    return (
        isinstance(item, dict)
        and described.get("_type") == "Sequence"
        and not isinstance(item.get("_type"), str)
    )


def _transpose(value: Any) -> Any:
    """Turns an object of lists of one length into a list of objects."""
    if value is None:
        return None
    columns = {name: items for name, items in value.items() if items is not None}
    if len({len(items) for items in columns.values()}) > 1:
        raise ValueError("lists of different lengths")
    return [dict(zip(columns, items, strict=True)) for items in zip(*columns.values(), strict=True)]
