"""A network link that breaks: relays TCP connections on loopback, and resets them after some bytes or at once.

Counts what each side has sent: also bytes of a connection that was reset before they arrived.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import struct
import termios
import threading
from collections.abc import Callable
from typing import Final, Self

_BLOCK_BYTES: Final = 64 << 10
_BUFFER_BYTES: Final = 128 << 10
"""Kept in each socket, as by a link over a distance. Loopback keeps megabytes, which a cut would lose."""
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with a time of zero: closing sends a reset, as a peer sees it whose link was cut (socket(7))."""


class FaultingLink:
    """Listens on loopback and relays each connection to a port there.

    Args:
        target: port that connections are relayed to.
        port: port to listen on; 0: any free one.
        next_cut: for each connection the number of bytes, in both directions together, after which it is reset;
            None: never.

    Attributes:
        port: the port that it listens on.
        sent_up: bytes that clients have sent, arrived or not.
        sent_down: bytes that the target has sent, arrived or not.
        connections: number of connections so far.
        cuts: number of connections that were reset.
    """

    def __init__(
        self, target: int, *, port: int = 0, next_cut: Callable[[], int | None] = lambda: None
    ) -> None:
        self._target = target
        self._next_cut = next_cut
        self._listener = socket.create_server(("127.0.0.1", port))
        _bound_buffers(self._listener)  # accepted sockets inherit it
        self._lock = threading.Lock()
        self._open: set[_RelayedConnection] = set()
        self.port = int(self._listener.getsockname()[1])
        self.sent_up = self.sent_down = self.connections = self.cuts = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Resets all connections; new ones are relayed."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            connection.reset()

    def close(self) -> None:
        """Resets all connections and stops listening."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends `accept`
        self._listener.close()
        self._thread.join()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                server = socket.socket()
                _bound_buffers(server)
                server.connect(("127.0.0.1", self._target))
            except OSError:  # nobody listens there: the client sees a refused connection
                server.close()
                _reset(client)
                continue
            connection = _RelayedConnection(self, client, server, self._next_cut())
            with self._lock:
                self._open.add(connection)
            connection.start()

    def note_sent(self, up: int, down: int) -> None:
        """Counts bytes that were sent."""
        with self._lock:
            self.sent_up += up
            self.sent_down += down

    def note_end(self, connection: _RelayedConnection, *, was_cut: bool) -> None:
        """Notes that a connection has ended."""
        with self._lock:
            self._open.discard(connection)
            self.cuts += was_cut

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _RelayedConnection:
    """One connection, in two threads; reset after `budget` bytes."""

    def __init__(
        self, link: FaultingLink, client: socket.socket, server: socket.socket, budget: int | None
    ) -> None:
        self._link = link
        self._client, self._server = client, server
        self._budget = budget
        self._lock = threading.Lock()
        self._running = 2
        self._is_cut = False

    def start(self) -> None:
        for source, sink in ((self._client, self._server), (self._server, self._client)):
            threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def reset(self) -> None:
        """Cuts the connection: wakes both threads, the last of which resets both ends."""
        self._is_cut = True
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # also ends a `sendall` to who does not read

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not self._is_cut and (block := source.recv(_BLOCK_BYTES)):
                self._note(source, len(block))
                passed = self._take_from_budget(len(block))
                if not self._is_cut or passed:
                    sink.sendall(block[:passed])
                if passed < len(block):
                    self.reset()
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        self._end()

    def _note(self, source: socket.socket, count: int) -> None:
        is_up = source is self._client
        self._link.note_sent(count if is_up else 0, 0 if is_up else count)

    def _take_from_budget(self, count: int) -> int:
        """Returns how many of so many bytes may pass."""
        with self._lock:
            if self._budget is None:
                return count
            passed = min(count, self._budget)
            self._budget -= passed
            return passed

    def _end(self) -> None:
        with self._lock:
            self._running -= 1
            if self._running:
                return
        for end in (self._client, self._server):
            if self._is_cut:
                # Bytes that have arrived and were not read (FIONREAD, tcp(7)).
                unread = array.array("i", [0])
                with contextlib.suppress(OSError):
                    fcntl.ioctl(end.fileno(), termios.FIONREAD, unread)
                self._note(end, unread[0])
                _reset(end)
            end.close()
        self._link.note_end(self, was_cut=self._is_cut)


def _bound_buffers(end: socket.socket) -> None:
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        end.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)


def _reset(end: socket.socket) -> None:
    """Closes a socket with a reset."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    end.close()
