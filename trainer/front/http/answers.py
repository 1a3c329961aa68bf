"""Answers that say no: a status, a public code, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from trainer.errors import ErrorCode
from trainer.models import Strict

SECURITY_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""On every answer, whatever made it: the guard and the protocol add them."""

_METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST")

_ANYWHERE: Final = ((400, ErrorCode.REQUEST_INVALID), (431, ErrorCode.REQUEST_INVALID))
"""What is refused before a route is asked: bytes that are no HTTP, and heads that are too large."""


Headers = Mapping[int, dict[str, Any]]
"""Status → OpenAPI objects of its headers, by name."""


class ErrorBody(Strict):
    """The body of every answer that is not a success."""

    error: ErrorCode


class Refusal(Exception):  # noqa: N818 -- it is an answer, not a fault
    """Ends a request with a status and a public code.

    Args:
        status: HTTP status.
        code: public code.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, code: ErrorCode, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(code.value)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})


def refused(status: int, code: ErrorCode, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer for a refusal."""
    return JSONResponse({"error": code.value}, status_code=status, headers=headers)


async def answer_refusal(_: Request, refusal: Exception) -> JSONResponse:
    """Exception handler for `Refusal`."""
    assert isinstance(refusal, Refusal)  # noqa: S101 -- registered for this class only
    return refused(refusal.status, refusal.code, refusal.headers)


async def answer_invalid(_: Request, error: Exception) -> JSONResponse:
    """Exception handler for parameters that do not validate: it does not say which, nor quote them."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    return refused(400, ErrorCode.REQUEST_INVALID)


async def answer_http(request: Request, error: Exception) -> JSONResponse:
    """Exception handler for what routing refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)  # noqa: S101
    if error.status_code == 405:
        return refused(405, ErrorCode.REQUEST_INVALID, {"Allow": ", ".join(_methods(request))})
    code = ErrorCode.NOT_FOUND if error.status_code == 404 else ErrorCode.REQUEST_INVALID
    return refused(error.status_code, code, error.headers)


def _methods(request: Request) -> list[str]:
    """Every method of the path, over all its routes: `Allow` names them all (RFC 9110, section 10.2.1)."""
    scopes = {method: {**request.scope, "method": method} for method in _METHODS}
    return [
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    ]


async def answer_bug(_: Request, __: Exception) -> JSONResponse:
    """Exception handler for our bugs."""
    return refused(500, ErrorCode.INTERNAL)


def documented(
    *refusals: tuple[int, ErrorCode], headers: Headers | None = None
) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses` for refusals: per status, the codes it comes with; and those that any request can get.

    Args:
        refusals: status and code.
        headers: documented headers by status.
    """
    codes: dict[int, list[str]] = {}
    for status, code in (*_ANYWHERE, *refusals):
        if code.value not in codes.setdefault(status, []):
            codes[status].append(code.value)
    return {status: _documented(values, (headers or {}).get(status)) for status, values in sorted(codes.items())}


def _documented(codes: list[str], headers: dict[str, Any] | None) -> dict[str, Any]:
    # Beside the reference to the one error body (OpenAPI 3.1 allows it): which codes this status comes with.
    schema = {"properties": {"error": {"enum": codes}}}
    answer = {
        "model": ErrorBody,
        "description": " or ".join(f"`{value}`" for value in codes),
        "content": {"application/json": {"schema": schema}},
    }
    return answer if headers is None else {**answer, "headers": headers}


def header(pattern: str, description: str, *, required: bool = True) -> dict[str, Any]:
    """OpenAPI object of a response header."""
    return {"description": description, "required": required, "schema": {"type": "string", "pattern": pattern}}
