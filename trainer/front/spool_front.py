"""The front for an exchange by files: it uses the same control channel as the HTTP front, and no network socket.

Who can write to the directory is as untrusted as a client on the network.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from trainer.encoding import has_sha256
from trainer.errors import ErrorCode, UnavailableError
from trainer.exchange.signed_token import MAX_TOKEN_BYTES
from trainer.exchange.spool import (
    ACKNOWLEDGEMENT_NAME,
    DATASET_NAME,
    DELETION_NAME,
    EVENTS_NAME,
    EVIDENCE_NAME,
    JOINT_ACKNOWLEDGEMENT,
    JOINT_DATASET,
    JOINT_REGRANT,
    MAX_EVENTS_BYTES,
    NONCE_NAME,
    REGRANT_NAME,
    RESULT_INFO_NAME,
    RESULT_NAME,
    STATUS_NAME,
    TERMS_NAME,
    SpoolDirectory,
    SpoolTerms,
    authorization_name,
)
from trainer.exchange.spool_documents import SpoolEvent, SpoolResult
from trainer.exchange.upload_authorization import UploadGate, UploadScope
from trainer.exchange.withdrawal import WITHDRAWAL_NAME
from trainer.ipc.channel import Channel
from trainer.ipc.front_messages import (
    Acknowledged,
    DeletionReady,
    EvidenceReply,
    EvidenceRequest,
    FrontMessage,
    OpenUpload,
    PrivateEvent,
    Ready,
    RegrantReady,
    ResultReady,
    Shutdown,
    StatusUpdate,
    SupervisorMessage,
    UploadReady,
    WithdrawalReceived,
)
from trainer.models import Phase, Status
from trainer.sandbox.properties import SandboxReport

_LOOK_SECONDS: Final = 0.2
_ASK_AGAIN_SECONDS: Final = 2.0
"""Pause before evidence that the supervisor did not have is asked for again."""
_EARLIER_RESULT_NAME: Final = "earlier-" + RESULT_NAME
_STALE: Final = (
    DELETION_NAME,
    EVIDENCE_NAME,
    STATUS_NAME,
    RESULT_INFO_NAME,
    ACKNOWLEDGEMENT_NAME,
    EVENTS_NAME,
    REGRANT_NAME,
)


@dataclass
class SpoolFront:
    """Translates files of the spool into messages to the supervisor, and messages into files.

    Args:
        spool: the spool directory.
        channel: control channel to the supervisor.
        max_upload_bytes: largest sealed dataset that is accepted.
        gate: decides whose datasets are accepted; in a joint job each provider has files of its own.
        sandbox: the sandbox properties that this process measured about itself.
        clock: returns monotonic seconds.
    """

    spool: SpoolDirectory
    channel: Channel[SupervisorMessage, FrontMessage]
    max_upload_bytes: int
    gate: UploadGate
    sandbox: SandboxReport = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    _nonce: str | None = field(default=None, init=False)
    _ask_again_at: float = field(default=0.0, init=False)
    _asked: int = field(default=0, init=False)
    _status: Status = field(default=Status(phase=Phase.STARTING), init=False)
    _accepting: bool = field(default=False, init=False)
    _accepting_regrant: bool = field(default=False, init=False)
    _scope: UploadScope | None = field(default=None, init=False)
    _job_spec_sha256: str | None = field(default=None, init=False)
    _has_opened: bool = field(default=False, init=False)
    _delivered: bool = field(default=False, init=False)
    _result: ResultReady | None = field(default=None, init=False)
    _acknowledged: set[bytes] = field(default_factory=set, init=False)
    _events: int = field(default=0, init=False)

    def run(self) -> None:
        """Serves until the supervisor sends `Shutdown` or closes the channel.

        Raises:
            OSError: the directory cannot be written.
            JobError: the supervisor sent bytes that are not a message.
        """
        for name in (*_STALE, *self.spool.find(JOINT_REGRANT)):
            self.spool.clear(name)
        terms = SpoolTerms(
            max_upload_bytes=self.max_upload_bytes,
            joint=self.gate.joint,
            providers=self.gate.providers,
        )
        self._put(TERMS_NAME, terms.model_dump_json(exclude_defaults=True).encode())
        self.channel.send(Ready(port=0, tls_key=None, sandbox=self.sandbox))
        while self._take_messages():
            self._look_for_files()

    def _take_messages(self) -> bool:
        """Waits up to `_LOOK_SECONDS` for a message and handles it; returns False if the front has to exit."""
        try:
            message = self.channel.receive(timeout=_LOOK_SECONDS)
        except UnavailableError:
            return True
        if message is None or isinstance(message, Shutdown):
            return False
        self._take(message)
        return True

    def _take(self, message: SupervisorMessage) -> None:
        match message:
            case StatusUpdate(status=status):
                self._status = status
                self._put(STATUS_NAME, status.model_dump_json().encode())
            case EvidenceReply(evidence=str(evidence)):
                self._put(EVIDENCE_NAME, evidence.encode())
            case EvidenceReply():  # the job may still be preparing; the nonce waits
                self._nonce, self._ask_again_at = None, self.clock() + _ASK_AGAIN_SECONDS
            case OpenUpload(accept=accept, scope=scope, regrant=regrant):
                # A job that accepts a dataset makes a new result; one of an earlier job may not have been pulled.
                if (
                    accept
                    and not self._has_opened
                    and (earlier := self.spool.file(RESULT_NAME)).exists()
                ):
                    self.spool.clear(_EARLIER_RESULT_NAME)
                    earlier.rename(self.spool.file(_EARLIER_RESULT_NAME))
                self._has_opened |= accept
                # Accepting again after a delivery: the dataset did not open, and the provider has to send another.
                if accept and self._delivered:
                    self._clear_dataset()
                    self.spool.clear(EVENTS_NAME)  # sealed to the provider of the dataset before
                    self._delivered = False
                self._accepting, self._scope = accept, scope
                self._accepting_regrant = accept and regrant
                if scope is not None:
                    self._job_spec_sha256 = scope.job_spec_sha256
            case PrivateEvent(sealed=sealed):
                self._add_event(sealed)
            case ResultReady(size=size, sha256=digest, final=final):
                self._result, self._acknowledged = message, set()
                result = SpoolResult(size=size, sha256=digest, final=final)
                self._put(RESULT_INFO_NAME, result.model_dump_json(exclude_defaults=True).encode())
            case DeletionReady(statement=statement):
                self._put(DELETION_NAME, statement.encode())

    def _look_for_files(self) -> None:
        """Sends a message for each file that the provider's side has written."""
        # The same nonce is not answered twice: each request costs a quote, and the file stays where it is.
        nonce = (self.spool.read(NONCE_NAME, 128) or b"").decode("ascii", "replace").strip()
        is_new = nonce != self._nonce and self.clock() >= self._ask_again_at
        if is_new and re.fullmatch("[0-9a-f]{64}", nonce):
            self._nonce = nonce
            self._asked += 1
            self.channel.send(EvidenceRequest(id=self._asked, nonce=nonce))
        digests = self._result.acknowledgement_sha256 if self._result is not None else ()
        if len(self._acknowledged) < len(digests):
            joint = self.spool.find(JOINT_ACKNOWLEDGEMENT) if self.gate.joint else None
            for name in (ACKNOWLEDGEMENT_NAME,) if joint is None else joint:
                # Each value that acknowledges this result; any other is removed, and the offer goes on.
                shown = (self.spool.take(name, 128) or b"").strip()
                if has_sha256(shown, digests) and shown not in self._acknowledged:
                    self._acknowledged.add(shown)
                    self.channel.send(Acknowledged(acknowledgement=shown.decode("ascii")))
        if self.gate.joint and self._job_spec_sha256 is not None:
            for name in self.spool.find(WITHDRAWAL_NAME):
                # What a listed provider has signed; anything else is removed.
                token = (self.spool.take(name, MAX_TOKEN_BYTES) or b"").decode("latin1").strip()
                if self.gate.admits_withdrawal(token, self._job_spec_sha256):
                    self.channel.send(WithdrawalReceived(token=token))
        for name in self.spool.find(JOINT_REGRANT) if self.gate.joint else (REGRANT_NAME,):
            if self._accepting_regrant:
                self._look_for_regrant(name)
        for name in self.spool.find(JOINT_DATASET) if self.gate.joint else (DATASET_NAME,):
            if self._accepting:
                self._look_for_dataset(name)

    def _look_for_regrant(self, name: str) -> None:
        """Passes on whatever has the name of a re-grant; the supervisor removes it when it reads it."""
        if not os.path.lexists(self.spool.file(name)):
            return
        self._show_no_refusal()
        if name != REGRANT_NAME:
            self.spool.clear(REGRANT_NAME)
            self.spool.file(name).replace(self.spool.file(REGRANT_NAME))
        self._accepting = self._accepting_regrant = False
        self.channel.send(RegrantReady())

    def _show_no_refusal(self) -> None:
        """Once a file has another name, or is gone, its provider takes what the status says for its verdict."""
        self._put(STATUS_NAME, self._status.without_refusal().model_dump_json().encode())

    def _look_for_dataset(self, name: str) -> None:
        path = self.spool.file(name)
        try:
            found = path.lstat()
        except OSError:
            return
        if not stat.S_ISREG(found.st_mode):
            # A FIFO or a link would make the supervisor block, or read another file.
            self._clear_dataset(name)
            return
        if found.st_size > self.max_upload_bytes:
            self._refuse_dataset(name, ErrorCode.DATASET_TOO_LARGE)
            return
        written = self.spool.read(authorization_name(name), MAX_TOKEN_BYTES) or b""
        token = written.decode("latin1").strip()
        if not self.gate.admits(token, found.st_size, self._scope, now=time.time()):
            self._refuse_dataset(name, ErrorCode.UNAUTHORIZED)
            return
        if name != DATASET_NAME:
            self._show_no_refusal()
            self.spool.clear(DATASET_NAME)
            path.replace(self.spool.file(DATASET_NAME))
            self.spool.clear(authorization_name(name))
        self._accepting = False
        self._delivered = True
        self.channel.send(UploadReady(size=found.st_size))

    def _refuse_dataset(self, name: str, code: ErrorCode) -> None:
        """Removes a dataset and says why: whoever sent it has nothing but the status to go by."""
        self._clear_dataset(name)
        refused = self._status.model_copy(update={"error": code.value})
        self._put(STATUS_NAME, refused.model_dump_json().encode())

    def _clear_dataset(self, name: str = DATASET_NAME) -> None:
        for written in (name, authorization_name(name)):
            self.spool.clear(written)

    def _add_event(self, sealed: str) -> None:
        self._events += 1
        line = SpoolEvent(id=self._events, sealed=sealed).model_dump_json().encode() + b"\n"
        # Whoever can write to the directory may have put anything here: an event is lost then, not the job.
        with suppress(OSError):
            if not stat.S_ISREG(self.spool.file(EVENTS_NAME).lstat().st_mode):
                self.spool.clear(EVENTS_NAME)
        with suppress(OSError):
            self._append_event(line)

    def _append_event(self, line: bytes) -> None:
        # O_NOFOLLOW and O_NONBLOCK: it may be a link or a FIFO again.
        flags = (
            os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
        descriptor = os.open(self.spool.file(EVENTS_NAME), flags, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size + len(line) <= MAX_EVENTS_BYTES and os.write(descriptor, line) < len(line):
                # The disk is full: half a line would spoil the next one.
                os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)

    def _put(self, name: str, data: bytes) -> None:
        self.spool.move_directory_aside(name)
        self.spool.put(name, data)
