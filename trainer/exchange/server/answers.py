"""Answers that say no: a status, a public code, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from trainer.errors import ErrorCode
from trainer.models import Strict

SECURITY_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


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
    return JSONResponse({"error": code.value}, status_code=status, headers={**SECURITY_HEADERS, **(headers or {})})


async def answer_refusal(_: Request, refusal: Exception) -> JSONResponse:
    """Exception handler for `Refusal`."""
    assert isinstance(refusal, Refusal)  # noqa: S101 -- registered for this class only
    return refused(refusal.status, refusal.code, refusal.headers)


async def answer_invalid(_: Request, error: Exception) -> JSONResponse:
    """Exception handler for parameters that do not validate: it does not say which, nor quote them."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    return refused(400, ErrorCode.REQUEST_INVALID)


async def answer_http(_: Request, error: Exception) -> JSONResponse:
    """Exception handler for what routing refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)  # noqa: S101
    code = ErrorCode.NOT_FOUND if error.status_code == 404 else ErrorCode.REQUEST_INVALID
    return refused(error.status_code, code, error.headers)


async def answer_bug(_: Request, __: Exception) -> JSONResponse:
    """Exception handler for our bugs."""
    return refused(500, ErrorCode.INTERNAL)


def documented(*refusals: tuple[int, ErrorCode]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses` for refusals: per status, the codes it comes with."""
    codes: dict[int, list[str]] = {}
    for status, code in refusals:
        codes.setdefault(status, []).append(code.value)
    return {
        status: {
            "model": ErrorBody,
            "description": " or ".join(f"`{value}`" for value in values),
        }
        for status, values in codes.items()
    }
