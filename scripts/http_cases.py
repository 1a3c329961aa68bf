"""Requests to fire: schemathesis's cases for each operation of the document, and mutations of their bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, count
from random import Random
from typing import Any, Final
from urllib.parse import urlsplit

import requests
import schemathesis
from http_stages import (
    ACKNOWLEDGEMENT,
    AUTHORIZATION,
    ETAG,
    MAX_UPLOAD_BYTES,
    TOKEN,
    UPLOAD_BYTES,
    Server,
)
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from requests.structures import CaseInsensitiveDict
from schemathesis import Case, GenerationMode, SerializationContext
from schemathesis.core.result import Ok

BASE_URL: Final = "https://job.invalid"
CANARY: Final = "canary-9f31c7"
"""In a header of every request: what an answer must never repeat."""

MODES: Final = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
_TOKENS: Final = {"/events": TOKEN, "/ack": ACKNOWLEDGEMENT, "/dataset": AUTHORIZATION}
_SAMPLE: Final = 150
_UPLOAD: Final = re.compile("/dataset/[0-9a-f]{32}")
_COUNT: Final = re.compile("[0-9]{1,15}")
_RANGES: Final = (
    "bytes=0-", "bytes=0-0", "bytes=-1", "bytes=-0", "bytes=5-2", "bytes=0-1,3-4", "bytes=0-0,0-0,0-0,0-0,-1",
    "bytes=9999999999999999-", "bytes=99999999999999999999-", "bytes=--1", "bytes=1-x", "items=0-1", "bytes=",
    "bytes=2047-", "bytes=2048-", "bytes=-2048", "bytes=-99999", "bytes=0x1-2", "bytes=\u0661-2", "BYTES=0-1",
)  # fmt: skip
_TARGETS: Final = (
    "/../status", "/%2e%2e/status", "/%252e%252e/etc/passwd", "/dataset/..%2f..%2fetc%2fpasswd", "/result/..",
    "/dataset/%c0%ae%c0%ae%2f", "/status%00", "/\\..\\status", "//status", "/status;a=b", "/STATUS", "/status/",
    "/openapi.json", "/openapi.yaml", "/docs", "/metrics", "/.env", "*", "https://x/status", "x:443",
    "/?" + "a" * 999,
)  # fmt: skip
_METHODS: Final = (
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "X" * 300,
)  # fmt: skip
_LINES: Final = (
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Content-Length: 5",
    b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length: 5, 6",
    b"Host: a\r\nHost: b", b"Expect: 100-continue", b"Connection: upgrade\r\nUpgrade: websocket",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c", b" folded",
    b"X: " + b"y" * 20000, b"\r\n".join(b"X%d: y" % number for number in range(80)), b"No colon", b"X : y", b": y",
    b"X: a\x00b", b"X: a\nY: b", b"Tus-Resumable: 1.0.0", b"Upload-Offset: 0", b"Range: bytes=0-0",
)  # fmt: skip


_CHECKS: Final = {
    "negative_data_rejection": {
        "expected-statuses": [
            "400",
            "401",
            "404",
            "405",
            "409",
            "412",
            "413",
            "415",
            "429",
            "431",
            "503",
        ]
    },
    # What the document allows may come at the wrong time, or too often; it is never called malformed.
    "positive_data_acceptance": {
        "expected-statuses": ["2xx", "3xx", "401", "404", "409", "413", "416", "429", "503", "507"]
    },
}


@schemathesis.serializer("application/offset+octet-stream")
def _as_it_is(_: SerializationContext, value: Any) -> bytes:
    """A piece of an upload is bytes; what a negative case puts in their place is sent as text."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


class Cases:
    """Cases for one document, by operation and mode; drawn once, for every stage to fire.

    Args:
        document: the OpenAPI document.
        start: the same number gives the same cases.
    """

    def __init__(self, document: dict[str, Any], start: int) -> None:
        self._start = start
        config = schemathesis.Config.from_dict({"checks": _CHECKS})
        self._schema = schemathesis.openapi.from_dict(document, config=config)
        self._schema.config.update(base_url=BASE_URL)
        self.operations = [
            found.ok() for found in self._schema.get_all_operations() if isinstance(found, Ok)
        ]
        self._known: list[Case[Any]] = []
        self._more = chain(self._derived(), self._drawn())

    def __iter__(self) -> Iterator[Case[Any]]:
        """All of them, without end."""
        for number in count():
            while number >= len(self._known):
                self._known.append(next(self._more))
            yield self._known[number]

    def _derived(self) -> Iterator[Case[Any]]:
        """Those that schemathesis derives one by one: each bound of each parameter, and methods not documented."""
        for operation in self.operations:
            yield from self._schema.iter_coverage_cases(
                operation,
                generation_modes=list(MODES),
                generation_config=self._schema.config.generation,
            )

    def _drawn(self) -> Iterator[Case[Any]]:
        """Random ones, the operations and modes in turn."""
        for number in count():
            for operation in self.operations:
                for mode in MODES:
                    yield from self._sample(operation, mode, number)

    def _sample(self, operation: Any, mode: GenerationMode, number: int) -> list[Case[Any]]:
        drawn: list[Case[Any]] = []

        @seed(f"{self._start}/{operation.label}/{mode}/{number}")
        @settings(
            max_examples=_SAMPLE, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(operation.as_strategy(generation_mode=mode))
        def keep(case: Case[Any]) -> None:
            drawn.append(case)

        try:
            keep()
        except Unsatisfiable:
            # An operation without anything to choose has one positive case, and no negative ones.
            return []
        return drawn


def prepared(case: Case[Any]) -> requests.PreparedRequest:
    """The request as it goes out.

    Raises:
        requests.exceptions.InvalidHeader: a header that the client's library does not send.
    """
    kwargs = case.operation.schema.transport.serialize_case(case, base_url=BASE_URL)
    kwargs["headers"] = {
        name: value for name, value in kwargs["headers"].items() if value is not None
    }
    return requests.Request(**kwargs).prepare()


def aim(request: requests.PreparedRequest, server: Server, rng: Random) -> None:
    """Let some requests meet what is there: the upload under way, the token, the result.

    Only a valid value takes the place of a valid one, so that the case stays what schemathesis takes it for.
    """
    path = urlsplit(request.url or "").path
    headers: CaseInsensitiveDict[Any] = request.headers
    if _UPLOAD.fullmatch(path) and server.upload_path and rng.random() < 0.7:
        request.url = BASE_URL + server.upload_path
    if (
        request.method == "PATCH"
        and _COUNT.fullmatch(headers.get("Upload-Offset", ""))
        and rng.random() < 0.6
    ):
        headers["Upload-Offset"] = str(rng.choice((server.upload_offset, 0, UPLOAD_BYTES, 1 << 52)))
    if (
        path == "/dataset"
        and _COUNT.fullmatch(headers.get("Upload-Length", "0")[1:])
        and rng.random() < 0.3
    ):
        headers["Upload-Length"] = str(
            rng.choice((1, UPLOAD_BYTES, MAX_UPLOAD_BYTES, MAX_UPLOAD_BYTES + 1))
        )
    # Where it is required, and its absence the case.
    is_left_out = path == "/ack" and "Authorization" not in headers
    if (
        path in _TOKENS
        and not is_left_out
        and len(headers.get("Authorization", "")) <= 256
        and rng.random() < 0.6
    ):
        headers["Authorization"] = rng.choice(_bearers(_TOKENS[path]))
    name, values = rng.choice(
        (("Range", _RANGES), ("If-None-Match", (ETAG, "*")), ("If-Range", (ETAG, '"x"')))
    )
    if path == "/result" and len(headers.get(name, "")) <= 256 and rng.random() < 0.6:
        headers[name] = rng.choice(values).encode().decode("latin1")


def wire(request: requests.PreparedRequest) -> bytes:
    """Its bytes for HTTP/1.1."""
    lines = [
        f"{request.method} {request.path_url} HTTP/1.1",
        "Host: job.invalid",
        f"X-Canary: {CANARY}",
    ]
    for name, value in request.headers.items():
        text = value.decode("latin1") if isinstance(value, bytes) else str(value)
        lines.append(f"{name}: {text}")
    body = request.body or b""
    content = body if isinstance(body, bytes) else str(body).encode()
    return "\r\n".join([*lines, "", ""]).encode("latin1", "replace") + content


def _bearers(token: str) -> tuple[str, ...]:
    return (
        f"Bearer {token}", f"Bearer {token[1:]}d", "Bearer ", f"Basic {token}", "Bearer \xe9", f"bearer {token}",
    )  # fmt: skip


def mutated(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """A request that no library would send, out of one that it did."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    method, _, rest = lines[0].partition(b" ")
    target, _, version = rest.partition(b" ")
    match rng.randrange(8):
        case 0:
            method = rng.choice(_METHODS).encode()
        case 1:
            target = rng.choice(_TARGETS).encode()
        case 2:
            version = rng.choice((b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.1 x", b""))
        case 3 | 4:
            lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(_LINES))
        case 5:
            lines.insert(1, rng.choice(lines[1:]))
        case 6:
            return data + rng.choice(others)  # two in one go
        case _:
            spot = rng.randrange(len(data))
            return (
                data[:spot] + rng.randbytes(rng.randrange(1, 4)) + data[spot + rng.randrange(3) :]
            )
    lines[0] = b" ".join((method, target, version))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
