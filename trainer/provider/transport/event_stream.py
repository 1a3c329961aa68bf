"""Reads a job's server-sent events (WHATWG HTML, section 9.2), size-capped and across broken connections."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Final

import httpx
from pydantic import ValidationError

from trainer.errors import ErrorCode, TrainerError, UnavailableError
from trainer.exchange.limits import MAX_SEALED_EVENT_BYTES
from trainer.models import Status
from trainer.provider.transport.carrier import FINAL_PHASES, JobEvent, SealedEvent
from trainer.provider.transport.pinned_http import PinnedHttpClient, RetryPolicy

_MAX_LINE_BYTES: Final = MAX_SEALED_EVENT_BYTES + 64
_FIELDS: Final = ("id", "event", "data")


class EventStreamReader:
    """Events of one job, in order, each once as long as the job still has them.

    Args:
        http: client of the job.
        retry_policy: failures are counted from the last event or heartbeat.
        token: the grant's token for events; None leaves private ones out.
    """

    def __init__(
        self, http: PinnedHttpClient, retry_policy: RetryPolicy, token: str | None
    ) -> None:
        self._http = http
        self._retry_policy = retry_policy
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._last_id: int | None = None

    def events(self) -> Iterator[JobEvent]:
        """Yields events until the job is done or failed.

        Raises:
            UsageError: the token is wrong (`unauthorized`).
            UnavailableError: the job cannot be reached any more, or sends what is not an event.
        """
        while True:
            try:
                for event in self._read_connection():
                    yield event
                    if isinstance(event, Status) and event.phase in FINAL_PHASES:
                        return
                self._retry_policy.record_failure(
                    UnavailableError(ErrorCode.JOB_UNREACHABLE, "the job ended the events")
                )
            except TrainerError as error:
                self._retry_policy.record_failure(error)

    def _read_connection(self) -> Iterator[JobEvent]:
        """Yields the events of one connection, after the last one that an earlier connection delivered."""
        # Last-Event-ID: the job sends the events after this one again, so that none is lost with a connection.
        headers = dict(self._headers)
        if self._last_id is not None:
            headers["Last-Event-ID"] = str(self._last_id)
        with self._http.open("GET", "/events", headers=headers) as response:
            fields: dict[str, str] = {}
            for line in _read_lines(response):
                self._retry_policy.record_progress()
                # An empty line ends an event; a block of comment lines alone is a heartbeat.
                if line:
                    name, colon, value = line.partition(": ")
                    if colon and name in _FIELDS:
                        fields[name] = value
                elif fields:
                    parsed, fields = _parse_event(fields), {}
                    if parsed is not None:
                        self._last_id, event = parsed
                        yield event


def _read_lines(response: httpx.Response) -> Iterator[str]:
    rest = b""
    for piece in response.iter_raw():
        # A line without an end would otherwise grow until the memory is full.
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            raise _invalid_event()
        yield from (line.decode("utf-8", "replace") for line in lines)


def _parse_event(fields: Mapping[str, str]) -> tuple[int, JobEvent] | None:
    """Returns number and event of one block of fields; None for a kind of a later version.

    Raises:
        UnavailableError: a field is missing or malformed.
    """
    try:
        number, data = int(fields["id"]), fields["data"]
        match fields["event"]:
            case "status":
                return number, Status.model_validate_json(data)
            case "private":
                base64.b64decode(data, validate=True)
                return number, SealedEvent(number, data)
            case _:
                return None
    except (KeyError, ValueError, ValidationError, binascii.Error):
        raise _invalid_event() from None


def _invalid_event() -> UnavailableError:
    return UnavailableError(
        ErrorCode.JOB_UNREACHABLE, "the job sent something that is not an event"
    )
