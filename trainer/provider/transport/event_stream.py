"""Server-sent events of a job, read with caps and across broken connections (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import httpx
from pydantic import ValidationError

from trainer.errors import ErrorCode, TrainerError, UnavailableError
from trainer.exchange.limits import MAX_SEALED_EVENT_BYTES
from trainer.models import Status
from trainer.provider.transport.carrier import FINAL_PHASES, JobEvent, SealedEvent
from trainer.provider.transport.pinned_http import PinnedHttpClient, RetryPolicy

_MAX_LINE: Final = MAX_SEALED_EVENT_BYTES + 64


class EventStreamReader:
    """Events of one job, in order, each once as long as the job keeps them.

    Args:
        wire: to the job.
        patience: retries; counted from the last event or heartbeat.
        token: the grant's token, for private events.
    """

    def __init__(self, wire: PinnedHttpClient, patience: RetryPolicy, token: str | None) -> None:
        self._wire = wire
        self._patience = patience
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._last_id: int | None = None

    def events(self) -> Iterator[JobEvent]:
        """Events until the job is done or failed.

        Raises:
            UsageError: the token is wrong (`unauthorized`).
            UnavailableError: the job cannot be reached any more, or says what is no event.
        """
        while True:
            try:
                for event in self._connection():
                    yield event
                    if isinstance(event, Status) and event.phase in FINAL_PHASES:
                        return
                self._patience.failed(UnavailableError(ErrorCode.JOB_UNREACHABLE, "the job ended the events"))
            except TrainerError as error:
                self._patience.failed(error)

    def _connection(self) -> Iterator[JobEvent]:
        headers = dict(self._headers)
        if self._last_id is not None:
            headers["Last-Event-ID"] = str(self._last_id)
        with self._wire.open("GET", "/events", headers=headers) as answer:
            block = _Block()
            for line in self._lines(answer):
                self._patience.progressed()
                if line:
                    block.take(line)
                elif (numbered := block.event()) is not None:
                    self._last_id, event = numbered
                    yield event

    def _lines(self, answer: httpx.Response) -> Iterator[str]:
        rest = b""
        for piece in answer.iter_raw():
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > _MAX_LINE:
                raise _not_an_event()
            yield from (line.decode("utf-8", "replace") for line in lines)


@dataclass
class _Block:
    """The fields of one event while its lines come in."""

    fields: dict[str, str] = field(default_factory=dict)

    def take(self, line: str) -> None:
        name, colon, value = line.partition(": ")
        if colon and name in {"id", "event", "data"}:
            self.fields[name] = value

    def event(self) -> tuple[int, JobEvent] | None:
        """Id and event that an empty line ends; None after a comment. The block is empty again."""
        fields, self.fields = self.fields, {}
        if not fields:
            return None
        try:
            return _event(int(fields["id"]), fields["event"], fields["data"])
        except (KeyError, ValueError, ValidationError, binascii.Error):
            raise _not_an_event() from None


def _event(number: int, kind: str, data: str) -> tuple[int, JobEvent] | None:
    if kind == "status":
        return number, Status.model_validate_json(data)
    if kind == "private":
        base64.b64decode(data, validate=True)
        return number, SealedEvent(number, data)
    return None  # of a later version


def _not_an_event() -> UnavailableError:
    return UnavailableError(ErrorCode.JOB_UNREACHABLE, "the job sent something that is no event")
