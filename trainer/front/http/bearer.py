"""The header `Authorization: Bearer TOKEN` (RFC 6750), which three routes read, and the answer to a wrong one."""

from __future__ import annotations

from typing import Any, Final

from trainer.errors import ErrorCode
from trainer.front.http.answers import RequestRefused, header_schema

UNAUTHORIZED: Final = (401, ErrorCode.UNAUTHORIZED)
CHALLENGE: Final[dict[str, Any]] = {"WWW-Authenticate": header_schema("^Bearer$", "RFC 6750")}

_SCHEME: Final = "Bearer "


def parse_bearer(authorization: str | None) -> str | None:
    """Returns the token of an `Authorization` header; None for another scheme, or without the header."""
    if authorization is None or not authorization.startswith(_SCHEME):
        return None
    return authorization.removeprefix(_SCHEME)


def unauthorized() -> RequestRefused:
    """Returns the refusal of a request whose token is missing or wrong."""
    status, code = UNAUTHORIZED
    return RequestRefused(status, code, {"WWW-Authenticate": "Bearer"})
