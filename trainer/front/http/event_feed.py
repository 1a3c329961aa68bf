"""Events for `/events`: the latest public status, and sealed private events that are kept for late readers.

Readers pull with a cursor, so a slow one costs no memory: it misses intermediate statuses, and private events
only once they fall out of what is kept.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Literal

from trainer.exchange.limits import Limits
from trainer.models import Status


@dataclass(frozen=True)
class FeedEvent:
    """One event as readers get it. `id` grows by one per event, over both kinds."""

    id: int
    kind: Literal["status", "private"]
    data: str

    def encode(self) -> bytes:
        """Bytes of the event in a `text/event-stream`."""
        return f"id: {self.id}\nevent: {self.kind}\ndata: {self.data}\n\n".encode()


class EventFeed:
    """The events so far.

    Args:
        limits: how many private events are kept, in number and bytes.
        status: the first status.
    """

    def __init__(self, limits: Limits, status: Status) -> None:
        self._limits = limits
        self._last_id = 0
        self._private: deque[FeedEvent] = deque()
        self._private_bytes = 0
        self._changed = asyncio.Event()
        self._closed = False
        self.publish_status(status)

    @property
    def closed(self) -> bool:
        """Whether no further event can come."""
        return self._closed

    @property
    def last_id(self) -> int:
        """Id of the newest event."""
        return self._last_id

    def publish_status(self, status: Status) -> None:
        """Replace the public status."""
        self._status = FeedEvent(self._next_id(), "status", status.model_dump_json())
        self._wake()

    def publish_private(self, sealed: str) -> None:
        """Add a sealed event; the oldest ones go when there are too many."""
        self._private.append(FeedEvent(self._next_id(), "private", sealed))
        self._private_bytes += len(sealed)
        while len(self._private) > self._limits.kept_events or self._private_bytes > self._limits.kept_event_bytes:
            self._private_bytes -= len(self._private.popleft().data)
        self._wake()

    def since(self, cursor: int, *, private: bool) -> list[FeedEvent]:
        """Events with an id above `cursor`, in order; `private` ones only if asked for."""
        events = [event for event in self._private if event.id > cursor] if private else []
        if self._status.id > cursor:
            events.append(self._status)
        return sorted(events, key=lambda event: event.id)

    async def wait(self, seconds: float) -> bool:
        """Wait for a change; False if there was none in `seconds`."""
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """No more events: streams end."""
        self._closed = True
        self._wake()

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
