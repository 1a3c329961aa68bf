"""Events for `/events`: the latest public status, and the most recent sealed private events.

Each reader pulls events with a cursor, so a slow reader needs no queue: it misses intermediate statuses, and
private events that the limits have discarded.
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
    """One event. `id` grows by one per event, over both kinds."""

    id: int
    kind: Literal["status", "private"]
    data: str

    def encode(self) -> bytes:
        """Returns the event in the format of server-sent events (HTML standard, section 9.2.6)."""
        return f"id: {self.id}\nevent: {self.kind}\ndata: {self.data}\n\n".encode()


class EventFeed:
    """The latest public status and the most recent private events.

    Args:
        limits: maximum number and maximum total bytes of the stored private events.
        status: the first status.
    """

    def __init__(self, limits: Limits, status: Status) -> None:
        self._limits = limits
        self.last_id = 0
        """Id of the newest event."""
        self.closed = False
        """Whether no further event can come."""
        self._private: deque[FeedEvent] = deque()
        self._private_bytes = 0
        self._changed = asyncio.Event()
        self.publish_status(status)

    def publish_status(self, status: Status) -> None:
        """Replaces the public status."""
        self._status = FeedEvent(self._next_event_id(), "status", status.model_dump_json())
        self._notify_readers()

    def publish_private(self, sealed: str) -> None:
        """Adds a sealed event (base64); discards the oldest ones above the limits."""
        self._private.append(FeedEvent(self._next_event_id(), "private", sealed))
        self._private_bytes += len(sealed)
        while (
            len(self._private) > self._limits.kept_events
            or self._private_bytes > self._limits.kept_event_bytes
        ):
            self._private_bytes -= len(self._private.popleft().data)
        self._notify_readers()

    def drop_private(self) -> None:
        """Drops the sealed events: those that follow are for others."""
        self._private.clear()
        self._private_bytes = 0

    def events_since(self, cursor: int, *, private: bool) -> list[FeedEvent]:
        """Returns the events with an id above `cursor` in ascending order; private ones only if `private`."""
        events = [event for event in self._private if event.id > cursor] if private else []
        if self._status.id > cursor:
            events.append(self._status)
        return sorted(events, key=lambda event: event.id)

    async def wait(self, seconds: float) -> bool:
        """Waits for a new event or for `close`; returns False after `seconds` without one."""
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Ends all streams: no further event follows."""
        self.closed = True
        self._notify_readers()

    def _next_event_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def _notify_readers(self) -> None:
        # A new event for each change: every reader that waits on the old one wakes, and none has to reset it.
        self._changed.set()
        self._changed = asyncio.Event()
