"""S3 and what speaks its protocol, through `obstore` (docs/decisions/0016-object-stores.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store as Client

from trainer.errors import ErrorCode, UsageError
from trainer.exchange.object_store import STORE_VARIABLES, store_unavailable

_REQUEST_SECONDS: Final = 600
"""For one object: a part of 8 MiB arrives in time over a link of 0.1 Mbit/s."""

_RETRY_SECONDS: Final = 20
"""How long one call repeats a request; who calls decides about the time after it."""

_CODE: Final = re.compile(r"<Code>([A-Za-z]{1,64})</Code>")


class S3Store:
    """The objects below a prefix of a bucket.

    Args:
        bucket: its name.
        prefix: what the names of all objects begin with; empty for none.
        variables: the variables of `STORE_VARIABLES` that are set.
    """

    def __init__(self, bucket: str, prefix: str, variables: Mapping[str, str]) -> None:
        endpoint = variables.get("AWS_ENDPOINT_URL")
        self._client = Client(
            bucket,
            prefix=prefix or None,
            config={
                "access_key_id": variables["AWS_ACCESS_KEY_ID"],
                "secret_access_key": variables["AWS_SECRET_ACCESS_KEY"],
                "region": variables.get("AWS_REGION", "us-east-1"),
                **({"endpoint": endpoint} if endpoint else {}),
                **(
                    {"session_token": token}
                    if (token := variables.get("AWS_SESSION_TOKEN"))
                    else {}
                ),
            },
            client_options={
                "allow_http": (endpoint or "").startswith("http://"),
                "connect_timeout": timedelta(seconds=10),
                "timeout": timedelta(seconds=_REQUEST_SECONDS),
            },
            retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)},
        )

    def tag(self, name: str) -> str | None:
        """Returns the ETag, or else size and date, of an object; None if there is none. See `ObjectStore`."""
        with _translate_errors():
            try:
                found = obstore.head(self._client, name)
            except FileNotFoundError as error:
                _require_bucket(error)
                return None
            return found["e_tag"] or f"{found['size']} {found['last_modified'].timestamp()}"

    def get(self, name: str, limit: int) -> bytes | None:
        """Returns the content of an object; None without one of at most `limit` bytes. See `ObjectStore`."""
        with _translate_errors():
            try:
                answer = obstore.get(self._client, name)
            except FileNotFoundError as error:
                _require_bucket(error)
                return None
            return bytes(answer.bytes()) if answer.meta["size"] <= limit else None

    def put(self, name: str, content: bytes) -> None:
        """Writes an object. See `ObjectStore`."""
        # In one request: an upload in parts that is broken off would stay in the bucket, unseen, and cost money.
        with _translate_errors():
            obstore.put(self._client, name, content, use_multipart=False)

    def delete(self, name: str) -> None:
        """Removes an object, if there is one. See `ObjectStore`."""
        with _translate_errors():
            try:
                obstore.delete(self._client, name)
            except FileNotFoundError as error:
                _require_bucket(error)


def _require_bucket(error: FileNotFoundError) -> None:
    """Raises `store-refused` if it is not the object that does not exist, but the bucket."""
    if "<Code>NoSuchBucket</Code>" in str(error):
        raise _refused("NoSuchBucket") from None


@contextmanager
def _translate_errors() -> Iterator[None]:
    # `from None`, and no text of the library: it quotes requests, and inside the VM tracebacks reach the provider,
    # who has no business with the operator's credentials.
    try:
        yield
    except (PermissionDeniedError, UnauthenticatedError, FileNotFoundError) as error:
        raise _refused(_code_of(error)) from None
    except (BaseError, OSError) as error:
        raise store_unavailable(_code_of(error)) from None


def _code_of(error: Exception) -> str:
    """Returns the code in the store's own answer, or else the library's name for the error."""
    found = _CODE.search(str(error))
    return found.group(1) if found else type(error).__name__


def _refused(code: str) -> UsageError:
    return UsageError(
        ErrorCode.STORE_REFUSED,
        "the object store refused a request",
        expected="credentials that may read, list and write the bucket",
        found=code,
        hint=f"these variables are used: {', '.join(STORE_VARIABLES)}",
    )
