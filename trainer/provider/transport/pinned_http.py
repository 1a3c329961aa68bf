"""Requests to a job from the provider's machine: pinned, capped, and with every failure as one of our errors.

The job is a stranger until it is verified, and its carrier stays one: sizes, encodings and redirects are not its
to choose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import httpx

from trainer.encoding import parse_json
from trainer.errors import ErrorCode, JobError, TrainerError, UnavailableError, UsageError
from trainer.exchange.limits import MAX_ERROR_BYTES
from trainer.exchange.tls import PinnedContext

_USAGE: Final = frozenset({ErrorCode.REQUEST_INVALID, ErrorCode.NOT_FOUND, ErrorCode.UNAUTHORIZED})
_WORTH_A_RETRY: Final = frozenset({
    ErrorCode.JOB_BUSY,
    ErrorCode.JOB_UNREACHABLE,
    ErrorCode.TIMEOUT,
    ErrorCode.TOO_MANY_REQUESTS,
    ErrorCode.UPLOAD_CONFLICT,
    ErrorCode.INTERNAL,
})  # fmt: skip


@dataclass
class RetryPolicy:
    """Bounded retries with growing pauses; progress starts the count anew.

    Args:
        retries: failures in a row that are put up with.
        first_pause: seconds after the first failure; doubled after each further one.
        longest_pause: seconds.
        sleep: waits; an argument for tests.
    """

    retries: int = 6
    first_pause: float = 0.5
    longest_pause: float = 30.0
    sleep: Callable[[float], None] = time.sleep
    _failures: int = field(default=0, init=False)

    def progressed(self) -> None:
        """Something worked."""
        self._failures = 0

    def failed(self, error: TrainerError) -> None:
        """Pause before the next attempt.

        Raises:
            TrainerError: `error` itself, when a retry cannot help or there were enough of them.
        """
        self._failures += 1
        if error.code not in _WORTH_A_RETRY or self._failures > self.retries:
            raise error
        self.sleep(min(self.longest_pause, self.first_pause * 2 ** (self._failures - 1)))


class PinnedHttpClient:
    """A pinned HTTPS connection pool to one job.

    Args:
        url: `https://host:port` of the job.
        pinned_spki_sha256: the only acceptable TLS key; None records the first one that answers.
        timeout: seconds to connect, and between pieces of an answer.
        proxy: URL of an HTTP proxy that tunnels to the job; the pin holds through it.

    Raises:
        UsageError: not an https URL without path, query or user.
    """

    def __init__(self, url: str, *, pinned_spki_sha256: str | None, timeout: float, proxy: str | None) -> None:
        self.url = _origin(url)
        self._timeout = timeout
        self._context = PinnedContext(pinned_spki_sha256)
        # No environment: neither proxies nor credentials of a .netrc that the user did not ask for.
        self._client = httpx.Client(
            base_url=self.url,
            verify=self._context,
            trust_env=False,
            timeout=timeout,
            follow_redirects=False,
            proxy=proxy,
            headers={"Accept-Encoding": "identity", "User-Agent": "confidential-trainer"},
        )

    @property
    def pin(self) -> str | None:
        """The key that is demanded of every connection, once known."""
        return self._context.pin

    def require_pin(self) -> None:
        """Refuse to send what is meant for one job only to a key that nobody has looked at.

        Raises:
            UsageError: no key is known.
        """
        if self.pin is None:
            raise UsageError(
                ErrorCode.USAGE, "the job's TLS key is not known yet", hint="ask for its attestation first"
            )

    @contextmanager
    def open(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        content: Iterable[bytes] | None = None,
        accept: tuple[int, ...] = (200,),
    ) -> Iterator[httpx.Response]:
        """Send a request and give its answer, body unread.

        Raises:
            VerificationError: another TLS key answers; it got no byte of the request.
            TrainerError: the job refused, or cannot be reached (`job-unreachable`).
        """
        try:
            with self._client.stream(method, path, headers=headers, params=params, content=content) as answer:
                self._check(answer, accept)
                yield answer
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def fetch(
        self,
        method: str,
        path: str,
        *,
        limit: int = 0,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        accept: tuple[int, ...] = (200,),
    ) -> tuple[httpx.Headers, bytes]:
        """Headers and body of a small answer of at most `limit` bytes.

        Raises:
            TrainerError: as `open`; also if the body is larger or takes too long.
        """
        with self.open(method, path, headers=headers, params=params, accept=accept) as answer:
            return answer.headers, self._read(answer, limit)

    def _read(self, answer: httpx.Response, limit: int) -> bytes:
        body = bytearray()
        # An answer that comes byte by byte never runs into the timeout between pieces; this bounds the whole.
        end = time.monotonic() + 4 * self._timeout
        for piece in answer.iter_raw():
            body += piece
            if len(body) > limit or time.monotonic() > end:
                raise UnavailableError(
                    ErrorCode.JOB_UNREACHABLE,
                    f"{self.url}: the answer is too large or too slow",
                    expected=f"at most {limit} bytes in {4 * self._timeout:.0f} s",
                    found=f"{len(body)} bytes and more",
                )
        return bytes(body)

    def _check(self, answer: httpx.Response, accept: tuple[int, ...]) -> None:
        if answer.status_code not in accept:
            raise _refusal(answer, self._read(answer, MAX_ERROR_BYTES), self.url)
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise UnavailableError(
                ErrorCode.JOB_UNREACHABLE, f"{self.url}: answers in an encoding nobody asked for"
            )

    def _unreachable(self, error: httpx.HTTPError) -> UnavailableError:
        code = ErrorCode.TIMEOUT if isinstance(error, httpx.TimeoutException) else ErrorCode.JOB_UNREACHABLE
        return UnavailableError(
            code,
            f"{self.url}: {type(error).__name__}: {error}",
            hint="is the job running, and is this its address?",
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()


def _origin(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.path not in {"", "/"} or parts.query or "@" in url:
        raise UsageError(ErrorCode.USAGE, "not the address of a job", expected="https://HOST:PORT", found=url)
    return f"https://{parts.netloc}"


def _refusal(answer: httpx.Response, body: bytes, url: str) -> TrainerError:
    code = _public_code(body)
    if answer.request.method == "HEAD" and answer.status_code == 404:
        code = ErrorCode.NOT_FOUND  # an answer to HEAD has no body
    if code is None:
        return UnavailableError(
            ErrorCode.JOB_UNREACHABLE,
            f"{url}: the answer is not a job's",
            expected='a JSON object {"error": CODE}',
            found=f"status {answer.status_code}",
        )
    if code is ErrorCode.DATASET_TOO_LARGE:
        return JobError(
            code, "the sealed dataset is too large for this job",
            expected=f"at most {answer.headers.get('tus-max-size', 'what was announced')} bytes", found="more",
        )  # fmt: skip
    kind = UsageError if code in _USAGE else UnavailableError
    return kind(code, f"{url}: the job refused: {code.value}")


def _public_code(body: bytes) -> ErrorCode | None:
    try:
        document = parse_json(body)
        return ErrorCode(document["error"]) if isinstance(document, dict) else None
    except (ValueError, KeyError):
        return None
