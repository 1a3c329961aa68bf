"""A relay in front of the job's port that can hold what it carries, so that a transfer is ended in its middle."""

from __future__ import annotations

import ctypes
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

CLONE_NEWNET: Final = 0x40000000
BLOCK_BYTES: Final = 4096

Direction = Literal["up", "down"]
"""`up` is what the provider sends, `down` what the job sends."""


class Gate:
    """Listens on loopback of another network namespace and relays every connection to the job.

    Args:
        network: process id in that network namespace.
        port: port to listen on.
        job_port: port of the job.
    """

    def __init__(self, network: int, port: int, job_port: int) -> None:
        self.carried: dict[Direction, int] = {"up": 0, "down": 0}
        self.connections = 0
        self.held = threading.Event()
        self._limits: dict[Direction, int] = {}
        self._released = threading.Event()
        self._released.set()
        self._job_port = job_port
        self._listener: socket.socket | None = None
        self._closed = self._drops = False
        self._relays: list[tuple[threading.Thread, socket.socket, socket.socket]] = []
        listening = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, args=(network, port, listening), daemon=True
        )
        self._thread.start()
        assert listening.wait(10), "the relay does not listen"

    def hold(self, direction: Direction, after: int) -> None:
        """Hold each connection once it has carried `after` more bytes in a direction."""
        self.held.clear()
        self._released.clear()
        self._limits = {direction: after}

    def release(self, *, drop: bool = False) -> None:
        """Let everything through again; what is held goes on, or is dropped with its connection."""
        self._drops = drop
        self._limits = {}
        self._released.set()

    def close(self) -> None:
        """Stop listening; connections that there are end with their peers."""
        self._closed = True
        self.release()
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # ends `accept`
        self._thread.join(10)

    def _serve(self, network: int, port: int, listening: threading.Event) -> None:
        # Only this thread enters the namespace; what it opens there stays there.
        with Path(f"/proc/{network}/ns/net").open("rb") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        with socket.create_server(("127.0.0.1", port)) as self._listener:
            listening.set()
            while not self._closed:
                try:
                    client, _ = self._listener.accept()
                except OSError:
                    break
                self.connections += 1
                try:
                    job = socket.create_connection(("127.0.0.1", self._job_port), timeout=5)
                except OSError:
                    client.close()
                    continue
                job.settimeout(None)
                relay = threading.Thread(target=self._relay, args=(client, job), daemon=True)
                self._relays.append((relay, client, job))
                relay.start()
        for relay, *ends in self._relays:
            for end in ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            relay.join(10)

    def _relay(self, client: socket.socket, job: socket.socket) -> None:
        with client, job:
            back = threading.Thread(target=self._carry, args=(job, client, "down"), daemon=True)
            back.start()
            self._carry(client, job, "up")
            back.join()

    def _carry(self, source: socket.socket, target: socket.socket, direction: Direction) -> None:
        limits, carried = self._limits, 0
        with suppress(OSError):
            while block := source.recv(BLOCK_BYTES):
                if self._limits is not limits:
                    limits, carried = self._limits, 0  # counted since `hold`
                carried += len(block)
                if carried > limits.get(direction, carried):
                    self.held.set()
                    self._released.wait()
                    if self._drops:
                        break
                target.sendall(block)
                self.carried[direction] += len(block)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
