"""The supervisor's side of the front: starts it, answers its requests for evidence, publishes what is public.

The front faces the network and may have been taken over, so it can ask for little: evidence over a nonce, and to
be believed that an upload is complete. That a result was acknowledged it has to show by a value that only the
provider can have.
"""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trainer.attestation.evidence import Evidence
from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, JobError, TrainerError, UnavailableError
from trainer.exchange.upload_authorization import UploadScope
from trainer.exchange.withdrawal import MAX_WITHDRAWALS
from trainer.ipc import front_messages as protocol
from trainer.ipc.channel import Channel
from trainer.job import child_process as children
from trainer.logs import log_error, private
from trainer.models import MAX_PROVIDERS
from trainer.sandbox.plan import SandboxPlan
from trainer.spec import ExchangeSection

READY_SECONDS: Final = 60.0
"""Time for a front to serve after its start."""

MAX_WAITING_WITHDRAWALS: Final = MAX_PROVIDERS * MAX_WITHDRAWALS
"""A front that sends more has been taken over, and could as well send none."""

EvidenceSource = Callable[[str], Evidence]
"""Nonce (64 hex digits) → fresh evidence with claims for that nonce."""

FrontUpdate = (
    protocol.StatusUpdate | protocol.TokenHashes | protocol.PrivateEvent | protocol.DeletionReady
)
"""What the front gets from the supervisor besides evidence: status, digests, a signed statement, ciphertext."""


Arrival = protocol.UploadReady | protocol.RegrantReady
"""What ends a wait for a dataset."""


class FrontProcess:
    """A running front. A thread of its own receives its messages; methods may be called from any thread.

    Args:
        process: the child.
        channel: the supervisor's end of its control channel.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        channel: Channel[protocol.FrontMessage, protocol.SupervisorMessage],
    ) -> None:
        self._process = process
        self._channel = channel
        self._evidence_source: EvidenceSource | None = None
        self._ready: protocol.Ready | None = None
        self._upload: protocol.UploadReady | None = None
        self._regrant: protocol.RegrantReady | None = None
        self._missing_acknowledgements: set[str] | None = None
        self._ended: ErrorCode | None = None
        self._withdrawals: list[str] = []
        self._changed = threading.Condition()

    def start_listening(self) -> None:
        """Starts the thread that receives. Only after this process has confined itself, which takes one thread."""
        threading.Thread(target=self._listen, name="front-listener", daemon=True).start()

    def wait_ready(self) -> protocol.Ready:
        """Waits until the front serves; its message has the port and the digest of the TLS key.

        Raises:
            JobError: it ended, or was not ready within `READY_SECONDS`.
        """
        if not self._wait(lambda: self._ready is not None, READY_SECONDS) or self._ready is None:
            raise JobError(ErrorCode.FRONT_DIED, "the front did not come up", hint="see front.log")
        return self._ready

    def serve_evidence(self, source: EvidenceSource) -> None:
        """Answers requests for evidence from now on with what `source` returns."""
        with self._changed:
            self._evidence_source = source

    def take_withdrawals(self) -> list[str]:
        """Returns the tokens of withdrawals that have arrived since the last call; nobody has checked them."""
        with self._changed:
            taken, self._withdrawals = self._withdrawals, []
        return taken

    def wait_arrival(
        self,
        seconds: float,
        scope: UploadScope,
        *,
        regrant: bool,
        on_withdrawal: Callable[[], None] = lambda: None,
    ) -> Arrival:
        """Accepts an upload, or a re-grant, and waits until one is complete; returns its message.

        Args:
            seconds: how long to wait.
            scope: what an authorisation of the upload has to name, if the job spec lists providers.
            regrant: whether a re-grant is accepted.
            on_withdrawal: called when there are withdrawals to take. An upload under way goes on.

        Raises:
            JobError: `dataset-timeout`, or the front ended.
        """
        with self._changed:
            self._regrant = None  # one that came too late for the wait before
        self._channel.send(protocol.OpenUpload(accept=True, scope=scope, regrant=regrant))
        end = time.monotonic() + seconds
        while self._wait(
            lambda: self._arrival(regrant) is not None or bool(self._withdrawals),
            end - time.monotonic(),
        ):
            if self._arrival(regrant) is not None:
                break
            on_withdrawal()
        if (arrival := self._arrival(regrant)) is None:
            raise JobError(
                ErrorCode.DATASET_TIMEOUT,
                "no dataset arrived",
                expected=f"one within {seconds:.0f} s",
                found="none",
            )
        self._upload = self._regrant = None
        self._channel.send(protocol.OpenUpload(accept=False))
        return arrival

    def _arrival(self, regrant: bool) -> Arrival | None:
        return self._upload or (self._regrant if regrant else None)

    def send(self, update: FrontUpdate) -> None:
        """Sends what the front gives to clients from now on.

        Raises:
            JobError: `front-died`: the front no longer takes messages.
        """
        self._channel.send(update)

    def offer_result(self, result: protocol.ResultReady) -> None:
        """Has the front serve a result. From now on the values that `result` has the digests of acknowledge it.

        Raises:
            JobError: `front-died`: the front no longer takes messages.
        """
        with self._changed:
            # Those of an earlier result were others.
            self._missing_acknowledgements = set(result.acknowledgement_sha256)
        self._channel.send(result)

    def report_end(self, code: ErrorCode) -> None:
        """Counts the front as ended: a process that it depends on has died."""
        with self._changed:
            self._ended = self._ended or code
            self._changed.notify_all()

    @property
    def has_acknowledgement(self) -> bool:
        """Whether every provider has acknowledged the result that was offered last."""
        return self._missing_acknowledgements == set()

    def wait_acknowledged(self, seconds: float) -> bool:
        """Waits until every provider has acknowledged the result; returns False if one did not in time."""
        return self._wait(lambda: self.has_acknowledgement, seconds)

    def require_running(self) -> None:
        """Checks that the front still runs.

        Raises:
            JobError: `front-died`.
        """
        if self._ended is not None:
            raise JobError(self._ended, "the front ended", hint="see front.log")

    def end(self) -> None:
        """Shuts the front down, by force if it does not end by itself."""
        try:
            self._channel.send(protocol.Shutdown())
            self._process.wait(children.TERMINATE_SECONDS)
        except (OSError, TrainerError, subprocess.TimeoutExpired):
            private.warning("the front did not end by itself")
        children.stop_process(self._process)
        self._channel.close()

    def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: condition() or self._ended is not None, seconds)
            met = condition()
        if not met:
            self.require_running()
        return met

    def _listen(self) -> None:
        try:
            while (message := self._channel.receive()) is not None:
                self._handle(message)
        except (OSError, TrainerError) as error:
            log_error(
                "the front sent something that is not a message, or closed its channel", error
            )
        except Exception:  # noqa: BLE001 -- this thread has no caller: without the next lines, others wait in vain
            private.exception("internal error while handling a message of the front")
        with self._changed:
            self._ended = self._ended or ErrorCode.FRONT_DIED
            self._changed.notify_all()

    def _handle(self, message: protocol.FrontMessage) -> None:
        if isinstance(message, protocol.EvidenceRequest):
            # Outside the lock: a quote takes long, and waiting threads must be able to notice other changes.
            self._channel.send(self._evidence_reply(message))
            return
        with self._changed:
            match message:
                case protocol.Ready():
                    self._ready = message
                case protocol.UploadReady():
                    self._upload = message
                case protocol.RegrantReady():
                    self._regrant = message
                case protocol.Acknowledged():
                    # The front compares too, but it faces the network: its claim is not enough for a signature.
                    digest = sha256_hex(message.acknowledgement.encode())
                    (self._missing_acknowledgements or set()).discard(digest)
                case protocol.WithdrawalReceived():
                    if len(self._withdrawals) < MAX_WAITING_WITHDRAWALS:
                        self._withdrawals.append(message.token)
                case protocol.FrontFailed():
                    self._ended = self._ended or message.code
            self._changed.notify_all()

    def _evidence_reply(self, request: protocol.EvidenceRequest) -> protocol.EvidenceReply:
        # The main thread sets it once the job has keys.
        with self._changed:
            source = self._evidence_source
        try:
            if source is None:
                raise UnavailableError(
                    ErrorCode.JOB_BUSY, "the job has no keys to attest at this time"
                )
            evidence = source(request.nonce).canonical().decode()
            return protocol.EvidenceReply(id=request.id, evidence=evidence, error=None)
        except TrainerError as error:
            # Only the code is sent: the text of an error may quote private content.
            log_error("a request for evidence was refused", error)
            return protocol.EvidenceReply(id=request.id, evidence=None, error=error.code)


@contextmanager
def front_process(
    settings: ExchangeSection, *, ciphertext: Path, by_files: bool, log: Path, plan: SandboxPlan
) -> Iterator[FrontProcess]:
    """Runs a front for the time of the context.

    Args:
        settings: limits and address of the exchange.
        ciphertext: directory for sealed uploads and results.
        by_files: exchange files in `ciphertext` instead of serving HTTP.
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
    front = FrontProcess(process, protocol.supervisor_channel(ours))
    try:
        yield front
    finally:
        front.end()
