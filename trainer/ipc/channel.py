"""The control channel: typed messages over inherited descriptors, one JSON document a line.

The supervisor talks to each of its children over one channel: a socket pair to the front, two pipes to the worker
and to the fetch process. Each direction has a closed set of message types and a maximum length. A child may have
been taken over by hostile input, so the reader checks in this order: length, then JSON without duplicate keys,
then the message type with all its fields. The first line that fails ends the channel with an error that names the
sender.

    channel = Channel(events_fd, orders_fd, incoming=FROM_WORKER, outgoing=TO_WORKER)
    channel.send(order)
    while (message := channel.receive()) is not None:
        ...

No private key crosses a channel, and no plaintext crosses the one to the front.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from trainer.encoding import parse_json
from trainer.errors import ErrorCode, JobError, TrainerError, UnavailableError
from trainer.models import Strict

STDIN: Final = 0
"""Descriptor that a child reads its instructions from."""

_READ_BYTES: Final = 1 << 16


class ChannelMessage(Strict):
    """Base of all messages. Each type has a field `kind`, by which the reader distinguishes them."""

    def model_post_init(self, _context: Any, /) -> None:
        """Counts `kind` as set, so that `MessageFormat.encode`, which omits unset fields, writes it."""
        self.model_fields_set.add("kind")


Incoming = TypeVar("Incoming", bound=ChannelMessage)
Outgoing = TypeVar("Outgoing", bound=ChannelMessage)
Content = TypeVar("Content", bound=ChannelMessage)


@dataclass(frozen=True)
class MessageFormat(Generic[Content]):
    """The messages that pass in one direction.

    Args:
        messages: adapter for the union of the message types, discriminated by `kind`.
        max_bytes: longest line, newline included.
        sender: who sends them, for error messages: `the front`.
        error: class of the error that reading something else raises.
        code: code of that error.
    """

    messages: TypeAdapter[Content]
    max_bytes: int
    sender: str
    error: type[TrainerError]
    code: ErrorCode

    def encode(self, message: Content) -> bytes:
        """Returns the message as one line, newline included.

        Raises:
            JobError: the line is longer than `max_bytes`.
        """
        # Fields that nobody set stay out of the line: the digest of a job spec covers only what its author wrote.
        line = message.model_dump_json(exclude_unset=True).encode() + b"\n"
        if len(line) > self.max_bytes:
            raise JobError(
                ErrorCode.JOB_FAILED,
                "a control message is too large",
                expected=f"at most {self.max_bytes} bytes",
                found=len(line),
            )
        return line

    def parse(self, line: bytes) -> Content:
        """Parses one line, with or without its newline.

        Raises:
            TrainerError: of the class `error`: too long, or not a message; names the field, never its content.
        """
        # The length comes first: the time and memory of a JSON parser grow with its input.
        if len(line) > self.max_bytes:
            raise self.violation(
                "a message is too long", expected=f"at most {self.max_bytes} bytes", found=len(line)
            )
        try:
            parse_json(line)  # refuses duplicate keys and NaN, which pydantic's parser accepts
            return self.messages.validate_json(line)
        except ValidationError as error:
            # The place and pydantic's error type, without the value: this text may reach a log.
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "document"
            # `from None`: the traceback of the cause would quote the content.
            raise self.violation(f"not a message ({place}: {first['type']})") from None
        except ValueError:
            raise self.violation("not a message (not strict JSON)") from None

    def violation(
        self, reason: str, *, expected: object = None, found: object = None
    ) -> TrainerError:
        """Returns the error for a sender that does not keep to this format."""
        return self.error(self.code, f"{self.sender}: {reason}", expected=expected, found=found)


class MessageDecoder(Generic[Incoming]):
    """Joins blocks of bytes to lines and parses them; buffers at most `max_bytes` and one block."""

    def __init__(self, incoming: MessageFormat[Incoming]) -> None:
        self._incoming = incoming
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, block: bytes) -> None:
        """Adds bytes as they arrived; b"" is the end of the stream.

        Raises:
            TrainerError: the stream ended inside a message.
        """
        # Half a message is an error and not an end: a sender that was killed must not pass for one that finished.
        if not block and self._buffer:
            raise self._incoming.violation("the channel ended inside a message")
        self._buffer += block

    def next_message(self) -> Incoming | None:
        """Returns the next complete message; None if more bytes are needed.

        Raises:
            TrainerError: as `MessageFormat.parse`.
        """
        # The search resumes where the last one ended: a message of many blocks is searched once, not once a block.
        end = self._buffer.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._buffer)
            # At max_bytes without a newline the line is too long already: nothing more is collected.
            if self._searched >= self._incoming.max_bytes:
                raise self._incoming.violation("a message is too long")
            return None
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        self._searched = 0
        return self._incoming.parse(line)


class Channel(Generic[Incoming, Outgoing]):
    """One end of a control channel. Any thread may send; one thread receives.

    Args:
        reading: descriptor that the other end writes to; owned by the channel.
        writing: descriptor that the other end reads from; may be the same one; owned by the channel.
        incoming: format of what the other end sends.
        outgoing: format of what this end sends.
        send_seconds: time for one message to be taken; None waits without limit.
    """

    def __init__(
        self,
        reading: int,
        writing: int,
        *,
        incoming: MessageFormat[Incoming],
        outgoing: MessageFormat[Outgoing],
        send_seconds: float | None = None,
    ) -> None:
        self._reading = reading
        self._writing = writing
        self._incoming = incoming
        self._outgoing = outgoing
        self._decoder = MessageDecoder(incoming)
        self._send_seconds = send_seconds
        self._send_lock = threading.Lock()
        # A blocking write of a large message would wait past the time limit for an end that does not read.
        if send_seconds is not None:
            os.set_blocking(writing, False)

    def fileno(self) -> int:
        """Returns the descriptor to poll before `receive_available`."""
        return self._reading

    def send(self, message: Outgoing) -> None:
        """Sends one message.

        Raises:
            TrainerError: of the class and code of `incoming`: the other end is gone, or did not take the message
                in time. `JobError`: the message is too large.
        """
        rest = memoryview(self._outgoing.encode(message))
        deadline = _deadline(self._send_seconds)
        try:
            # One message at a time: the kernel may take a message in parts, and those of two threads would mix.
            with self._send_lock:
                while rest:
                    if not _wait(self._writing, select.POLLOUT, deadline):
                        raise TimeoutError
                    try:
                        rest = rest[os.write(self._writing, rest) :]
                    except BlockingIOError:
                        continue
        except OSError as error:
            raise self._incoming.violation(
                "the other end of the control channel is gone"
            ) from error

    def receive(self, *, timeout: float | None = None) -> Incoming | None:
        """Returns the next message; None once the other end has closed.

        Args:
            timeout: seconds for the message to arrive in full; None waits without limit. The part that has arrived
                by then is kept for the next call.

        Raises:
            UnavailableError: `timeout` passed.
            TrainerError: as `MessageFormat.parse`, also for a stream that ends inside a message.
        """
        deadline = _deadline(timeout)
        has_read = False
        while (message := self._decoder.next_message()) is None:
            if self._reading < 0:
                return None
            # A sender that trickles a message must not prolong the wait; a timeout of 0 reads what has arrived.
            is_late = has_read and deadline is not None and time.monotonic() >= deadline
            if is_late or not _wait(self._reading, select.POLLIN, deadline):
                raise UnavailableError(ErrorCode.TIMEOUT, "no control message in time")
            if not self._read_block():
                return None
            has_read = True
        return message

    def receive_available(self) -> list[Incoming] | None:
        """Reads once; returns the messages that are complete by then, or None once the other end has closed.

        Blocks if nothing has arrived: for ends that poll `fileno` first.

        Raises:
            TrainerError: as `receive`.
        """
        if not self._read_block():
            return None
        messages = []
        while (message := self._decoder.next_message()) is not None:
            messages.append(message)
        return messages

    def _read_block(self) -> bool:
        """Reads one block and decodes it; returns False at the end of the stream."""
        try:
            block = os.read(self._reading, _READ_BYTES)
        except BlockingIOError:
            return True
        except ConnectionError:
            block = (
                b""  # a socket whose other end died with unread data; a pipe reports an end of file
            )
        self._decoder.feed(block)
        return bool(block)

    def close_sending(self) -> None:
        """Closes the writing descriptor of a channel over two pipes: the other end reads an end of file."""
        if self._writing >= 0 and self._writing != self._reading:
            os.close(self._writing)
        self._writing = -1

    def close(self) -> None:
        """Closes both descriptors."""
        # -1 first: the kernel reuses numbers, and a late call must not reach another file with the same number.
        reading, self._reading = self._reading, -1
        writing, self._writing = self._writing, -1
        for descriptor in {reading, writing}:
            if descriptor >= 0:
                os.close(descriptor)


def stdio_channel(
    incoming: MessageFormat[Incoming], outgoing: MessageFormat[Outgoing]
) -> Channel[Incoming, Outgoing]:
    """Returns a channel on stdin and stdout. What libraries print on stdout goes to stderr from now on."""
    sys.stdout.flush()
    channel = Channel(STDIN, os.dup(1), incoming=incoming, outgoing=outgoing)
    os.dup2(2, 1)
    return channel


def _deadline(seconds: float | None) -> float | None:
    return None if seconds is None else time.monotonic() + seconds


def _wait(descriptor: int, event: int, deadline: float | None) -> bool:
    """Waits until a descriptor is ready, or has an error that the next call shows; False at the deadline."""
    if descriptor < 0:
        raise BrokenPipeError("the channel is closed")
    # poll(2) also reports what was not asked for: a closed other end (POLLHUP) and errors (POLLERR).
    poll = select.poll()
    poll.register(descriptor, event)
    milliseconds = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    return bool(poll.poll(milliseconds))
