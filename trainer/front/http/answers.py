"""Error responses: an HTTP status and a public error code, and nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from trainer.errors import ErrorCode
from trainer.models import Phase, Strict

SECURITY_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Headers of every response; `RequestGuard` and `CappedProtocol` add them."""

_METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST")

_ANYWHERE: Final = ((400, ErrorCode.REQUEST_INVALID), (431, ErrorCode.REQUEST_INVALID))
"""Refusals before routing: bytes that are not HTTP, and heads that are too large."""


Headers = Mapping[int, dict[str, Any]]
"""Status → OpenAPI objects of its headers, by name."""


class ErrorBody(Strict):
    """The body of every answer that is not a success.

    Attributes:
        error: public code.
        phase: with `wrong-phase`: the job's, which says whose turn it is.
    """

    error: ErrorCode
    phase: Phase | None = None


class RequestRefused(Exception):  # noqa: N818 -- it is a response, not a fault
    """Ends a request with a status and a public code.

    Args:
        status: HTTP status.
        code: public code.
        headers: further headers of the answer.
    """

    def __init__(
        self, status: int, code: ErrorCode, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(code.value)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})


def refusal_response(
    status: int,
    code: ErrorCode,
    headers: Mapping[str, str] | None = None,
    *,
    phase: Phase | None = None,
) -> JSONResponse:
    """Returns the response for a refusal."""
    body = {"error": code.value} if phase is None else {"error": code.value, "phase": phase.value}
    return JSONResponse(body, status_code=status, headers=headers)


RefusalHandler = Callable[[Request, Exception], Awaitable[JSONResponse]]


def refusal_handler(current_phase: Callable[[], Phase]) -> RefusalHandler:
    """Returns what answers a `RequestRefused` with its status and its code, and the phase if that is why."""

    async def answer_refusal(_: Request, refusal: Exception) -> JSONResponse:
        assert isinstance(refusal, RequestRefused)  # noqa: S101 -- registered for this class only
        phase = current_phase() if refusal.code is ErrorCode.WRONG_PHASE else None
        return refusal_response(refusal.status, refusal.code, refusal.headers, phase=phase)

    return answer_refusal


async def answer_invalid_request(_: Request, error: Exception) -> JSONResponse:
    """Answers a request with invalid parameters; the response neither names nor quotes the parameter."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    return refusal_response(400, ErrorCode.REQUEST_INVALID)


async def answer_routing_error(request: Request, error: Exception) -> JSONResponse:
    """Answers a request for an unknown path, or with a method that the path does not have."""
    assert isinstance(error, HTTPException)  # noqa: S101
    if error.status_code == 405:
        return refusal_response(
            405, ErrorCode.REQUEST_INVALID, {"Allow": ", ".join(_allowed_methods(request))}
        )
    code = ErrorCode.NOT_FOUND if error.status_code == 404 else ErrorCode.REQUEST_INVALID
    return refusal_response(error.status_code, code, error.headers)


def _allowed_methods(request: Request) -> list[str]:
    """Returns every method of the path over all its routes, for `Allow` (RFC 9110, section 10.2.1)."""
    scopes = {method: {**request.scope, "method": method} for method in _METHODS}
    return [
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    ]


async def answer_internal_error(_: Request, __: Exception) -> JSONResponse:
    """Answers a request that met a bug: status 500 without any detail."""
    return refusal_response(500, ErrorCode.INTERNAL)


def documented_responses(
    *refusals: tuple[int, ErrorCode], headers: Headers | None = None
) -> dict[int | str, dict[str, Any]]:
    """Returns OpenAPI `responses` for refusals: the codes of each status, and the refusals before routing.

    Args:
        refusals: status and code.
        headers: documented headers by status.
    """
    codes: dict[int, list[str]] = {}
    for status, code in (*_ANYWHERE, *refusals):
        if code.value not in codes.setdefault(status, []):
            codes[status].append(code.value)
    return {
        status: _response_schema(values, (headers or {}).get(status))
        for status, values in sorted(codes.items())
    }


def _response_schema(codes: list[str], headers: dict[str, Any] | None) -> dict[str, Any]:
    # OpenAPI 3.1 allows a schema beside a reference: the reference to ErrorBody, and the codes of this status.
    schema = {"properties": {"error": {"enum": codes}}}
    answer = {
        "model": ErrorBody,
        "description": " or ".join(f"`{value}`" for value in codes),
        "content": {"application/json": {"schema": schema}},
    }
    return answer if headers is None else {**answer, "headers": headers}


def header_schema(pattern: str, description: str, *, required: bool = True) -> dict[str, Any]:
    """Returns the OpenAPI object of a response header."""
    return {
        "description": description,
        "required": required,
        "schema": {"type": "string", "pattern": pattern},
    }
