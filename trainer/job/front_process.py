"""The front process as the supervisor sees it: starts it, answers its questions, tells it what is public."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trainer.attestation.evidence import Evidence
from trainer.errors import ErrorCode, JobError, TrainerError, UnavailableError
from trainer.ipc import front_messages as control
from trainer.job import child_process as children
from trainer.logs import private
from trainer.models import Status
from trainer.sandbox.plan import SandboxPlan
from trainer.spec import ExchangeSection

READY_SECONDS: Final = 60.0
POLL_SECONDS: Final = 1.0

EvidenceSource = Callable[[str], Evidence]
"""Nonce (hex) → fresh evidence with claims for that nonce."""


class FrontProcess:
    """A running front. One thread, once `listen` was called, hears it; methods may be called from any thread."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        channel: control.Channel[control.FrontMessage, control.SupervisorMessage],
    ) -> None:
        self._process = process
        self._channel = channel
        self._evidence: EvidenceSource | None = None
        self._ready: control.Ready | None = None
        self._uploaded: int | None = None
        self._acknowledged = False
        self._gone: ErrorCode | None = None
        self._changed = threading.Condition()

    def listen(self) -> None:
        """Start to hear what it says. Makes a thread: not before this process has confined itself."""
        threading.Thread(target=self._listen, name="front-listener", daemon=True).start()

    # What the job asks of it

    def wait_ready(self) -> control.Ready:
        """Wait until it serves; its answer has the port and the TLS key's digest.

        Raises:
            JobError: it ended, or said nothing in time.
        """
        if not self._wait(lambda: self._ready is not None, READY_SECONDS) or self._ready is None:
            raise JobError(ErrorCode.FRONT_DIED, "the front did not come up", hint="see front.log")
        return self._ready

    def serve_evidence(self, source: EvidenceSource) -> None:
        """From now on, answer requests for attestation with what `source` makes."""
        with self._changed:
            self._evidence = source

    def wait_upload(self, seconds: float) -> int:
        """Wait for a whole sealed dataset; returns its size in bytes.

        Raises:
            JobError: `dataset-timeout`, or the front ended.
        """
        self._send(control.OpenUpload(accept=True))
        if not self._wait(lambda: self._uploaded is not None, seconds) or self._uploaded is None:
            raise JobError(
                ErrorCode.DATASET_TIMEOUT,
                "no dataset arrived",
                expected=f"one within {seconds:.0f} s",
                found="none",
            )
        size, self._uploaded = self._uploaded, None
        self._send(control.OpenUpload(accept=False))
        return size

    def update(self, status: Status) -> None:
        """Publish the status."""
        self._send(control.StatusUpdate(status=status))

    def admit_token(self, token_sha256: str) -> None:
        """Let holders of the grant's token read private events; the front knows only its digest."""
        self._send(control.TokenHash(sha256=token_sha256))

    def private_event(self, sealed: str) -> None:
        """Hand over one private event, already sealed to the grant's recipients (base64)."""
        self._send(control.PrivateEvent(sealed=sealed))

    def offer_result(self, size: int, sha256: str) -> None:
        """The sealed result lies in the spool."""
        self._send(control.ResultReady(size=size, sha256=sha256))

    def stop_evidence(self) -> None:
        """From now on no evidence: the keys that it would name are about to go."""
        with self._changed:
            self._evidence = None

    def hand_out_deletion(self, envelope: bytes) -> None:
        """The last word: what was destroyed, signed."""
        self._send(control.DeletionReady(envelope=envelope.decode()))

    def wait_acknowledged(self, seconds: float) -> bool:
        """Wait until the provider acknowledged the result; False when it did not in time."""
        return self._wait(lambda: self._acknowledged, seconds) and self._acknowledged

    def check(self) -> None:
        """Raise if the front is gone.

        Raises:
            JobError: `front-died`.
        """
        if self._gone is not None:
            raise JobError(self._gone, "the front ended", hint="see front.log")

    def end(self) -> None:
        """Shut it down."""
        try:
            self._channel.send(control.Shutdown())
            self._process.wait(children.TERMINATE_SECONDS)
        except (OSError, TrainerError, subprocess.TimeoutExpired):
            private.warning("the front did not end by itself")
        children.end(self._process)
        self._channel.close()

    # How it is listened to

    def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: condition() or self._gone is not None, seconds)
            met = condition()
        if not met:
            self.check()
        return met

    def _send(self, message: control.SupervisorMessage) -> None:
        self._channel.send(message)

    def _listen(self) -> None:
        try:
            while (message := self._channel.receive()) is not None:
                self._handle(message)
        except (OSError, TrainerError):
            private.exception("the front sent what it must not send, or broke off")
        self._set_gone(ErrorCode.FRONT_DIED)

    def _handle(self, message: control.FrontMessage) -> None:
        match message:
            case control.EvidenceRequest():
                self._send(self._answer(message))
            case control.Ready():
                with self._changed:
                    self._ready = message
                    self._changed.notify_all()
            case control.UploadReady():
                with self._changed:
                    self._uploaded = message.size
                    self._changed.notify_all()
            case control.Acknowledged():
                with self._changed:
                    self._acknowledged = True
                    self._changed.notify_all()
            case control.FrontFailed():
                self._set_gone(message.code)

    def _set_gone(self, code: ErrorCode) -> None:
        with self._changed:
            self._gone = self._gone or code
            self._changed.notify_all()

    def _answer(self, request: control.EvidenceRequest) -> control.EvidenceReply:
        try:
            if self._evidence is None:
                raise UnavailableError(ErrorCode.JOB_BUSY, "the job's keys are not derived yet")
            evidence = self._evidence(request.nonce).canonical().decode()
            return control.EvidenceReply(id=request.id, evidence=evidence, error=None)
        except TrainerError as error:
            private.exception("no evidence")
            return control.EvidenceReply(id=request.id, evidence=None, error=error.code)


@contextmanager
def front_process(
    settings: ExchangeSection, *, ciphertext: Path, by_files: bool, log: Path, plan: SandboxPlan
) -> Iterator[FrontProcess]:
    """Run a front for the time of the context.

    Args:
        settings: limits and address of the exchange.
        ciphertext: directory for sealed uploads and results.
        by_files: exchange through files in `ciphertext` instead of HTTP.
        log: the front's private log.
        plan: what the front confines itself to.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    arguments = ["--control-fd", str(theirs.fileno()), "--spool", str(ciphertext)]
    arguments += ["--settings-json", settings.model_dump_json(), *(["--files"] if by_files else [])]
    arguments += ["--plan-json", plan.model_dump_json()]
    with log.open("ab") as stream, theirs:
        process = children.start_module(
            "trainer.front",
            arguments,
            environment=children.clean_environment(ciphertext),
            log=stream,
            pass_fds=[theirs.fileno()],
        )
    front = FrontProcess(process, control.supervisor_channel(ours))
    try:
        yield front
    finally:
        front.end()
