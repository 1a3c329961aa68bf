"""HTTPS requests to one job: pinned to a TLS key, size-capped, with every failure as a `TrainerError`.

The job is untrusted until it is verified, and its network-facing process stays untrusted after that. The client
therefore bounds the size and time of each response, and accepts neither redirects nor content encodings.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import httpx

from trainer.encoding import parse_json
from trainer.errors import ErrorCode, JobError, TrainerError, UnavailableError, UsageError
from trainer.exchange.limits import MAX_ERROR_BYTES
from trainer.exchange.tls import PinnedContext
from trainer.models import Phase

_USAGE_CODES: Final = frozenset(
    {ErrorCode.REQUEST_INVALID, ErrorCode.NOT_FOUND, ErrorCode.UNAUTHORIZED}
)
_RETRIED_CODES: Final = frozenset({
    ErrorCode.JOB_BUSY,
    ErrorCode.JOB_UNREACHABLE,
    ErrorCode.TIMEOUT,
    ErrorCode.TOO_MANY_REQUESTS,
    ErrorCode.UPLOAD_CONFLICT,
    ErrorCode.INTERNAL,
})  # fmt: skip

_BYTES_PER_FAILURE: Final = 16 << 10
"""Progress that is worth a new connection, whose handshake takes some 4 KiB."""

_HINTS: Final[Mapping[ErrorCode, str]] = {
    ErrorCode.JOB_BUSY: "the job is still preparing, or about to end: repeat the command in a minute",
    ErrorCode.WRONG_PHASE: "the job is not, or no longer, where it can do this: `trainer watch` shows its phase",
    ErrorCode.TOO_MANY_REQUESTS: "wait a minute: the job answers a limited number of requests at a time",
}
_UPLOAD_HINTS: Final[Mapping[ErrorCode, str]] = {
    **_HINTS,
    ErrorCode.JOB_BUSY: "another upload is under way; one that makes no progress is dropped after some "
    "minutes: repeat the command then",
    ErrorCode.WRONG_PHASE: "the job takes no dataset now: it has one, perhaps another provider's, or it has "
    "ended; it trains on one dataset, and takes another only if it refuses that one: else ask for another job",
    ErrorCode.STORAGE_FULL: "ask the operator to make room in the job's ciphertext volume, then repeat",
    ErrorCode.UNAUTHORIZED: "the job spec lists who may submit (exchange.providers): give the identity file (-i) "
    "whose provider key it lists, or ask the operator to list yours",
}
"""What the provider can do about a refusal of the job."""

_TURNS: Final[Mapping[Phase, str]] = {
    **dict.fromkeys((Phase.STARTING, Phase.PREPARING), "it is the job's turn, which prepares"),
    Phase.AWAITING_DATASET: "it is a provider's turn to send a dataset",
    Phase.AWAITING_GRANT: "it is the turn of the provider whose dataset the job kept, to grant it again",
    **dict.fromkeys(
        (Phase.OPENING, Phase.TRAINING, Phase.SEALING), "it is the job's turn, which has a dataset"
    ),
    Phase.AWAITING_PULL: "it is the turn of the provider whose result the job offers",
    **dict.fromkeys((Phase.DONE, Phase.FAILED), "the job has ended"),
}
"""Whose turn it is in a phase, for a request that came in another one."""


@dataclass
class RetryPolicy:
    """Retries with exponential backoff, bounded in number; progress resets the count of consecutive failures.

    Args:
        retries: consecutive failures that are tolerated.
        total: failures that are tolerated in all, and one more for each `_BYTES_PER_FAILURE` that moved: a bad
            link finishes, and a job that sends one byte a connection does not go on for ever.
        first_pause: seconds after the first failure; doubled after each further one, and a tenth where a failure
            cost no more than its connection.
        longest_pause: upper bound of a pause, in seconds.
        sleep: waits for some seconds; an argument for tests.
    """

    retries: int = 6
    total: int = 2000
    first_pause: float = 0.5
    longest_pause: float = 30.0
    sleep: Callable[[float], None] = time.sleep
    _failures: int = field(default=0, init=False)
    _all_failures: int = field(default=0, init=False)
    _moved: int = field(default=0, init=False)
    _moved_before_failure: int = field(default=0, init=False)

    def record_progress(self, moved: int = 0) -> None:
        """Resets the count of failures; `moved` bytes more than before arrived."""
        self._failures = 0
        self._moved += moved

    def record_failure(self, error: TrainerError) -> None:
        """Counts a failure and pauses before the next attempt.

        Raises:
            TrainerError: `error` itself, if a retry cannot help or the last one was used up.
        """
        self._failures += 1
        self._all_failures += 1
        tolerated = self.total + self._moved // _BYTES_PER_FAILURE
        is_last = self._failures > self.retries or self._all_failures > tolerated
        # A refusal such as `unauthorized` or `dataset-too-large` would be the same at every attempt.
        if error.code not in _RETRIED_CODES or is_last:
            raise error
        is_cheap = self._moved - self._moved_before_failure >= _BYTES_PER_FAILURE
        self._moved_before_failure = self._moved
        pause = self.first_pause / 10 if is_cheap else self.first_pause * 2 ** (self._failures - 1)
        self.sleep(min(self.longest_pause, pause))


class PinnedHttpClient:
    """A pool of HTTPS connections to one job, all pinned to the same key.

    Args:
        url: `https://HOST:PORT` of the job.
        pinned_spki_sha256: the only acceptable TLS key; None records the first one that answers.
        timeout: seconds to connect, and between two pieces of a response.
        proxy: URL of an HTTP proxy that tunnels to the job; the pin is checked through it.

    Raises:
        UsageError: not an https URL, or one with a path, query or user.
    """

    def __init__(
        self, url: str, *, pinned_spki_sha256: str | None, timeout: float, proxy: str | None
    ) -> None:
        parts = urlsplit(url)
        if (
            parts.scheme != "https"
            or not parts.hostname
            or parts.path not in {"", "/"}
            or parts.query
            or "@" in url
        ):
            raise UsageError(
                ErrorCode.USAGE, "not the address of a job", expected="https://HOST:PORT", found=url
            )
        self.url = f"https://{parts.netloc}"
        self._timeout = timeout
        # No certificate authority: the pin decides, during the handshake and before a byte of a request is sent.
        self._context = PinnedContext(pinned_spki_sha256)
        # trust_env=False: neither proxies nor .netrc credentials that the user did not ask for.
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
        """SHA-256 of the key that every connection must show, in hex; None until one is known."""
        return self._context.pin

    def require_pin(self) -> None:
        """Refuses to go on without a known key: what follows is meant for the appraised job only.

        Raises:
            UsageError: no key is known.
        """
        if self.pin is None:
            raise UsageError(
                ErrorCode.USAGE,
                "the job's TLS key is not known yet",
                hint="ask for its attestation first",
            )

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        content: Iterable[bytes] | bytes | None = None,
        accept: tuple[int, ...] = (200,),
    ) -> Iterator[httpx.Response]:
        """Sends a request and yields the response with its body unread.

        Raises:
            VerificationError: another TLS key answers; it got no byte of the request.
            TrainerError: the job refused the request, or cannot be reached (`job-unreachable`).
        """
        try:
            with self._client.stream(
                method, path, headers=headers, params=params, content=content
            ) as response:
                if response.status_code not in accept:
                    raise _parse_refusal(
                        response, self._read_body(response, MAX_ERROR_BYTES), self.url
                    )
                # A compressed body of a few bytes may expand beyond every limit.
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise UnavailableError(
                        ErrorCode.JOB_UNREACHABLE,
                        f"{self.url}: the response has an unrequested encoding",
                    )
                yield response
        except httpx.HTTPError as error:
            timed_out = isinstance(error, httpx.TimeoutException)
            raise UnavailableError(
                ErrorCode.TIMEOUT if timed_out else ErrorCode.JOB_UNREACHABLE,
                f"{self.url}: {type(error).__name__}: {error}",
                hint="is the job running, and is this its address?",
            ) from error

    def fetch(
        self,
        method: str,
        path: str,
        *,
        limit: int = 0,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
        accept: tuple[int, ...] = (200,),
    ) -> tuple[httpx.Headers, bytes]:
        """Sends a request and returns headers and body of the response, of at most `limit` bytes.

        Raises:
            TrainerError: as `open`; also if the body is larger or takes too long.
        """
        with self.open(
            method, path, headers=headers, params=params, content=content, accept=accept
        ) as response:
            return response.headers, self._read_body(response, limit)

    def _read_body(self, response: httpx.Response, limit: int) -> bytes:
        body = bytearray()
        # A response that comes byte by byte never exceeds the timeout between pieces; this bounds its total time.
        deadline = time.monotonic() + 4 * self._timeout
        for piece in response.iter_raw():
            body += piece
            if len(body) > limit or time.monotonic() > deadline:
                raise UnavailableError(
                    ErrorCode.JOB_UNREACHABLE,
                    f"{self.url}: the answer is too large or too slow",
                    expected=f"at most {limit} bytes in {4 * self._timeout:.0f} s",
                    found=f"{len(body)} bytes and more",
                )
        return bytes(body)

    def close(self) -> None:
        """Closes all connections."""
        self._client.close()


def _parse_refusal(response: httpx.Response, body: bytes, url: str) -> TrainerError:
    """Returns the error for a status that was not accepted, from the `{"error": CODE}` in its body."""
    code = phase = None
    with contextlib.suppress(ValueError, KeyError):
        document = parse_json(body)
        code = ErrorCode(document["error"]) if isinstance(document, dict) else None
        phase = Phase(document["phase"]) if isinstance(document, dict) else None
    if response.request.method == "HEAD" and response.status_code == 404:
        code = ErrorCode.NOT_FOUND  # the response to HEAD has no body
    if code is None:
        return UnavailableError(
            ErrorCode.JOB_UNREACHABLE,
            f"{url}: the answer is not a job's",
            expected='a JSON object {"error": CODE}',
            found=f"status {response.status_code}",
        )
    if code is ErrorCode.DATASET_TOO_LARGE:
        return JobError(
            code,
            "the sealed dataset is too large for this job",
            expected=f"at most {response.headers.get('tus-max-size', 'what was announced')} bytes",
            found="more",
        )
    error_class = UsageError if code in _USAGE_CODES else UnavailableError
    is_upload = response.request.url.path.startswith("/dataset")
    hint = (_UPLOAD_HINTS if is_upload else _HINTS).get(code)
    turn = f" (phase {phase.value}: {_TURNS[phase]})" if phase is not None else ""
    return error_class(code, f"{url}: the job refused: {code.value}{turn}", hint=hint)
