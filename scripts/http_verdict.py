"""Judges answers: schemathesis's checks against the document, and that nothing says more than a public code."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

import requests
from http_cases import CANARY
from http_stages import ACKNOWLEDGEMENT, AUTHORIZATION, PRIVATE, TOKEN
from schemathesis import Case, Response
from schemathesis.checks import load_all_checks
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks as openapi_checks

from trainer.errors import ErrorCode
from trainer.models import Phase

_HEADERS: Final = (
    "accept-ranges", "allow", "cache-control", "connection", "content-length", "content-range",
    "content-type", "etag", "location", "retry-after", "transfer-encoding", "tus-extension", "tus-max-size",
    "tus-resumable", "tus-version", "upload-expires", "upload-length", "upload-offset", "www-authenticate",
    "x-content-type-options",
)  # fmt: skip
_ALWAYS: Final = (("cache-control", "no-store"), ("x-content-type-options", "nosniff"))
_TELLTALE: Final = re.compile(
    rb"Traceback|File \"|[A-Za-z]Error\b|Exception|\.py\b|site-packages|/(?:tmp|home|root)/"
    rb"|pydantic|starlette|fastapi|uvicorn|h11|Python",
)
_SPEAKING_OF_ITSELF: Final = "/openapi.json"
_UNROUTED: Final = {
    400: "request-invalid",
    404: "not-found",
    405: "request-invalid",
    431: "request-invalid",
}

_CHECKS: Final = (
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.negative_data_rejection,
    openapi_checks.positive_data_acceptance,
    openapi_checks.unsupported_method,
    openapi_checks.allow_header_conformance,
)
"""All of schemathesis's that judge one answer alone; a 500 is found since no operation documents it."""


@dataclass(frozen=True)
class Answer:
    """One answer off the wire; `status` 0 where the connection was closed without one."""

    status: int
    headers: dict[str, list[str]] = field(default_factory=dict)
    body: bytes = b""


class MalformedAnswerError(Exception):
    """What came is no HTTP answer."""


async def read_answer(reader: asyncio.StreamReader, method: str) -> Answer:
    """Read one answer, strictly.

    Raises:
        MalformedAnswerError: it is none.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        if getattr(error, "partial", b""):
            raise MalformedAnswerError("cut off in the head") from None
        return Answer(0)
    first, *lines = head[:-4].decode("latin1").split("\r\n")
    match = re.fullmatch(r"HTTP/1\.1 ([1-5][0-9]{2}) [ -~]*", first)
    if match is None:
        raise MalformedAnswerError(f"status line {first!r}")
    status = int(match[1])
    if status == 100:
        return await read_answer(reader, method)
    headers: dict[str, list[str]] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        headers.setdefault(name.lower(), []).append(value)
    bodiless = method == "HEAD" or status in {204, 304}
    return Answer(status, headers, b"" if bodiless else await _read_body(reader, headers))


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, list[str]]) -> bytes:
    try:
        if headers.get("transfer-encoding") == ["chunked"]:
            body = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
            return body
        if "content-length" in headers:
            return await reader.readexactly(int(headers["content-length"][0]))
        return await reader.read()  # until the end: an answer to HTTP/1.0
    except (asyncio.IncompleteReadError, ValueError) as error:
        raise MalformedAnswerError(f"body: {type(error).__name__}") from None


class Judge:
    """What is documented, and what may never be in an answer.

    Args:
        document: the OpenAPI document.
        secrets: further strings that no answer may contain.
    """

    def __init__(self, document: dict[str, Any], secrets: tuple[str, ...]) -> None:
        load_all_checks()
        self._paths = {
            re.compile(re.sub(r"\{\w+\}", "[^/]+", path) + r"\Z"): operations
            for path, operations in document["paths"].items()
        }
        everywhere = (CANARY, TOKEN, ACKNOWLEDGEMENT, AUTHORIZATION)
        self._secrets = tuple(secret.encode() for secret in (*everywhere, *secrets))

    def by_document(
        self, case: Case[Any], request: requests.PreparedRequest, answer: Answer
    ) -> list[str]:
        """What schemathesis has to say about an answer to its case."""
        response = Response(
            answer.status, answer.headers, answer.body, request, 0.0, verify=False, encoding="utf-8"
        )
        try:
            case.validate_response(response, checks=list(_CHECKS))
        except FailureGroup as group:
            return [f"{type(each).__name__}: {each.message}" for each in group.exceptions]
        return []

    def by_words(self, method: str, target: str, answer: Answer, *, token: bool) -> list[str]:
        """What is wrong with an answer to anything, whatever was asked."""
        found = [f"unknown header {name}" for name in answer.headers if name not in _HEADERS]
        found += [f"no {name}" for name, value in _ALWAYS if answer.headers.get(name) != [value]]
        everything = repr(answer.headers).encode() + answer.body
        found += [f"contains {secret!r}" for secret in self._secrets if secret in everything]
        if target.partition("?")[0] != _SPEAKING_OF_ITSELF:
            found += [f"contains {match!r}" for match in set(_TELLTALE.findall(everything))]
        if PRIVATE.encode() in everything and not token:
            found.append("a private event without the token")
        if answer.status >= 400:
            found += self._error(method, target.partition("?")[0], answer)
        elif not 200 <= answer.status < 400:
            found.append(f"status {answer.status}")
        return found

    def _error(self, method: str, path: str, answer: Answer) -> list[str]:
        if answer.headers.get("content-type") != ["application/json"]:
            return [f"an error as {answer.headers.get('content-type')}"]
        if method == "HEAD":
            return [f"an answer to HEAD with a body: {answer.body[:80]!r}"] if answer.body else []
        try:
            body = json.loads(answer.body)
        except ValueError:
            body = None
        with_phase = isinstance(body, dict) and body.get("error") == ErrorCode.WRONG_PHASE
        if not isinstance(body, dict) or list(body) != (
            ["error", "phase"] if with_phase else ["error"]
        ):
            return [f"error body {answer.body[:80]!r}"]
        if with_phase and body["phase"] not in set(Phase):
            return [f"no phase: {answer.body[:80]!r}"]
        allowed = self._codes(method, path, answer.status)
        return (
            []
            if body["error"] in allowed
            else [f"{answer.status} with {body['error']!r}, documented: {allowed}"]
        )

    def _codes(self, method: str, path: str, status: int) -> list[str]:
        for pattern, operations in self._paths.items():
            answer = operations.get(method.lower(), {}).get("responses", {}).get(str(status))
            if answer is not None and pattern.match(path):
                codes: list[str] = answer["content"]["application/json"]["schema"]["properties"][
                    "error"
                ]["enum"]
                return codes
        return [_UNROUTED[status]] if status in _UNROUTED else []
