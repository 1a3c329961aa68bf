"""A real front process over a socket pair, with the supervisor's end in the test."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from trainer.errors import UnavailableError
from trainer.exchange.control import (
    EvidenceReply,
    EvidenceRequest,
    FrontMessage,
    OpenUpload,
    Ready,
    ResultReady,
    StatusUpdate,
    SupervisorMessage,
    supervisor_channel,
)
from trainer.exchange.tls import PinnedContext
from trainer.models import Phase, Status

QUICK = {
    "handshake_seconds": 1.0,
    "head_seconds": 1.0,
    "idle_seconds": 2,
    "block_seconds": 1.0,
    "linger_seconds": 0.5,
    "heartbeat_seconds": 0.3,
    "evidence_seconds": 1.0,
    "upload_idle_seconds": 1.0,
}
TUS = {"Tus-Resumable": "1.0.0"}


class Front:
    """One front process and a supervisor that answers evidence requests with `{"nonce": …}`."""

    def __init__(
        self, spool: Path, exchange: dict[str, Any], limits: dict[str, Any], module: str = "trainer.exchange.front"
    ) -> None:
        self.spool = spool
        self.silent = False
        self.inbox: list[FrontMessage] = []
        self._news = threading.Condition()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", module),
                *("--control-fd", str(theirs.fileno()), "--spool", str(spool)),
                *("--settings-json", json.dumps({"host": "127.0.0.1", "port": 0, **exchange})),
                *("--limits-json", json.dumps({**QUICK, **limits})),
            ],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        theirs.close()
        self.channel = supervisor_channel(ours)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        self.ready = self.expect(Ready, seconds=20)
        self.url = f"https://127.0.0.1:{self.ready.port}"

    def _listen(self) -> None:
        while True:
            try:
                message = self.channel.receive()
            except Exception:
                return
            with self._news:
                if message is None:
                    return
                self.inbox.append(message)
                self._news.notify_all()
            if isinstance(message, EvidenceRequest) and not self.silent:
                evidence = json.dumps({"nonce": message.nonce})
                self.send(EvidenceReply(id=message.id, evidence=evidence, error=None))

    def send(self, message: SupervisorMessage) -> None:
        self.channel.send(message)

    def expect[Message](self, kind: type[Message], seconds: float = 5) -> Message:  # type: ignore[valid-type]
        ...

    def stop(self) -> str:
        self.channel.close()
        return ""
