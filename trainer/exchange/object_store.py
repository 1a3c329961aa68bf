"""Object stores: three operations on named objects of a few MiB, which every kind of store has.

A store is storage that nobody trusts. It can lose, delay, truncate and exchange objects, so a reader checks what
it got: documents by their own authentication, parts of files by the digest that their index states.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Protocol

from trainer.errors import ErrorCode, UnavailableError, UsageError

STORE_VARIABLES: Final[Mapping[str, str]] = {
    "AWS_ACCESS_KEY_ID": "[!-~]{1,512}",
    "AWS_SECRET_ACCESS_KEY": "[!-~]{1,512}",
    "AWS_SESSION_TOKEN": "[!-~]{1,4096}",
    "AWS_REGION": "[a-z0-9-]{1,64}",
    "AWS_ENDPOINT_URL": "https?://[0-9A-Za-z.:-]{1,253}",
}
"""The closed list of variables that say how a store is reached, each with the form of its value."""


class ObjectStore(Protocol):
    """The objects below one prefix of one store. Methods may be called from several threads."""

    def tag(self, name: str) -> str | None:
        """Returns a text that changes with the content of an object; None if there is no such object.

        Raises:
            UnavailableError: `store-unavailable`.
            UsageError: `store-refused`.
        """

    def get(self, name: str, limit: int) -> bytes | None:
        """Returns the content of an object; None if there is none, or it is above `limit` bytes.

        Raises:
            UnavailableError: `store-unavailable`.
            UsageError: `store-refused`.
        """

    def put(self, name: str, content: bytes) -> None:
        """Writes an object. A reader finds the earlier content or all of the new one.

        Raises:
            UnavailableError: `store-unavailable`.
            UsageError: `store-refused`.
        """

    def delete(self, name: str) -> None:
        """Removes an object, if there is one.

        Raises:
            UnavailableError: `store-unavailable`.
            UsageError: `store-refused`.
        """


def read_store_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables of the list that are set; an empty one counts as not set.

    Raises:
        UsageError: `store-refused`: a value has not its form, or the credentials are missing.
    """
    variables = {name: environment[name] for name in STORE_VARIABLES if environment.get(name)}
    for name, value in variables.items():
        if re.fullmatch(STORE_VARIABLES[name], value) is None:
            raise UsageError(
                ErrorCode.STORE_REFUSED, name, expected=STORE_VARIABLES[name], found="another text"
            )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        if name not in variables:
            raise UsageError(
                ErrorCode.STORE_REFUSED,
                "the credentials of the store",
                expected=f"the environment variable {name}",
                found="none",
                hint="a job gets them through the encrypted environment, which needs a key service (profile kms)",
            )
    return variables


def store_unavailable(found: str) -> UnavailableError:
    """Returns the error for a store that did not answer, or answered with an error of its own."""
    return UnavailableError(
        ErrorCode.STORE_UNAVAILABLE,
        "the object store",
        expected="an answer",
        found=found,
        hint="the same command goes on with what has arrived",
    )
