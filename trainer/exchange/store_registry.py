"""The choice of an object store by its location."""

from __future__ import annotations

import re
from collections.abc import Mapping

from trainer.errors import ErrorCode, UsageError, missing_package
from trainer.exchange.object_store import ObjectStore, read_store_variables
from trainer.spec import STORE_LOCATION


def is_store_location(text: str) -> bool:
    """Returns whether a text names a store that an `ObjectStore` can be opened for."""
    return re.fullmatch(STORE_LOCATION, text) is not None


def open_store(location: str, environment: Mapping[str, str]) -> ObjectStore:
    """Returns the store at a location.

    Args:
        location: `s3://BUCKET` or `s3://BUCKET/PREFIX`.
        environment: of its variables, those of `STORE_VARIABLES` are used and no other.

    Raises:
        UsageError: no such kind of store; a variable has not its form; the library is missing.
    """
    if not is_store_location(location):
        raise UsageError(
            ErrorCode.USAGE,
            "the location of a store",
            expected="s3://BUCKET/PREFIX",
            found=location,
        )
    variables = read_store_variables(environment)
    try:
        from trainer.exchange.s3_store import S3Store  # noqa: PLC0415 -- the library is an extra
    except ModuleNotFoundError as error:
        raise missing_package(error.name, "stores", "an object store") from error
    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    return S3Store(bucket, prefix, variables)
