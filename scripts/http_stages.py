"""The job's HTTP server as it stands in each phase, in this process; a supervisor answers over the real link.

`Server` runs the same application, protocol class and control messages as the front process does; only the sockets
differ: a socket pair, or TLS over loopback.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from uvicorn.server import ServerState

from trainer.attestation.evidence import DatasetClaims, DerivedKeys, Evidence, Recipients
from trainer.errors import ErrorCode
from trainer.exchange.limits import Limits
from trainer.exchange.spool import RESULT_NAME
from trainer.exchange.tls import make_server_context
from trainer.exchange.upload_authorization import (
    UploadAuthorization,
    UploadGate,
    UploadScope,
    sign_authorization,
)
from trainer.front.http.asgi_app import build_app
from trainer.front.http.connection import capped_protocol, http_config
from trainer.front.http.control_client import ControlClient
from trainer.ipc.front_messages import (
    FROM_FRONT,
    TO_FRONT,
    EvidenceReply,
    EvidenceRequest,
    OpenUpload,
    PrivateEvent,
    ResultReady,
    StatusUpdate,
    SupervisorMessage,
    TokenHashes,
)
from trainer.models import Phase, Status
from trainer.provider_keys import ProviderKey

TOKEN: Final = "5c" * 32
ACKNOWLEDGEMENT: Final = "ac" * 32
PRIVATE: Final = "cHJpdmF0ZS1ldmVudC1vbmx5LWZvci10aGUtdG9rZW4="
RESULT: Final = bytes(range(256)) * 8
ETAG: Final = f'"{hashlib.sha256(RESULT).hexdigest()}"'
MAX_UPLOAD_BYTES: Final = 1 << 16
UPLOAD_BYTES: Final = 4096
UPLOADED_BYTES: Final = 1024

PROVIDER: Final = ProviderKey(bytes(32))
SCOPE: Final = UploadScope(job_spec_sha256="0" * 64, recipient_sha256=("1" * 64,))
AUTHORIZATION: Final = sign_authorization(
    UploadAuthorization(
        version=1, expires_at=1 << 33, job_spec_sha256="0" * 64, recipient_sha256="1" * 64, size=UPLOAD_BYTES,
        tls_spki_sha256=None,
    ),
    PROVIDER,
)  # fmt: skip
"""Of an upload of `UPLOAD_BYTES`."""

_LIMITS: Final = Limits(
    evidence_burst=1 << 20,
    event_stream_seconds=0.002,
    heartbeat_seconds=0.001,
    block_seconds=1.0,
    idle_seconds=3600,
    head_seconds=60,
    empty_upload_seconds=0.05,
    upload_idle_seconds=0.05,
)


@dataclass(frozen=True)
class Stage:
    """What a job looks like from outside at one point.

    Args:
        name: of the stage.
        phase: public phase.
        accept: a dataset is awaited.
        upload: how far an upload is when the stage begins: `none`, `begun`, `whole`.
        evidence: what the supervisor says: `given`, a public code, or `silent`.
        token: the grant's token for events is known, private events exist.
        result: a sealed result (or failure report) is there.
        error: public error code.
        limited: with the usual limit on evidence.
        providers: the job spec lists a provider.
    """

    name: str
    phase: Phase
    accept: bool = False
    upload: str = "none"
    evidence: str = "given"
    token: bool = False
    result: bool = False
    error: ErrorCode | None = None
    limited: bool = False
    providers: bool = False


STAGES: Final = (
    Stage("starting", Phase.STARTING, evidence="job-busy"),
    Stage("preparing", Phase.PREPARING),
    Stage("preparing-no-agent", Phase.PREPARING, evidence="guest-agent-unavailable"),
    Stage("awaiting-dataset", Phase.AWAITING_DATASET, accept=True),
    Stage("awaiting-a-provider", Phase.AWAITING_DATASET, accept=True, providers=True),
    Stage("uploading", Phase.AWAITING_DATASET, accept=True, upload="begun"),
    Stage(
        "awaiting-again",
        Phase.AWAITING_DATASET,
        accept=True,
        error=ErrorCode.NO_IDENTITY_MATCH,
        limited=True,
    ),
    Stage("awaiting-grant", Phase.AWAITING_GRANT, accept=True),
    Stage("opening", Phase.OPENING, upload="whole"),
    Stage("training", Phase.TRAINING, token=True),
    Stage("training-silent", Phase.TRAINING, token=True, evidence="silent"),
    Stage("sealing", Phase.SEALING, token=True, evidence="evidence-invalid"),
    Stage("awaiting-pull", Phase.AWAITING_PULL, token=True, result=True),
    Stage("failed", Phase.FAILED, token=True, error=ErrorCode.OUT_OF_MEMORY),
    Stage(
        "failed-report", Phase.FAILED, token=True, result=True, error=ErrorCode.DATASET_ROW_INVALID
    ),
    Stage("done", Phase.DONE, token=True, result=True),
)


def _limits(stage: Stage) -> Limits:
    changed: dict[str, float] = {"evidence_burst": 8} if stage.limited else {}
    if stage.evidence == "silent":
        changed |= {"evidence_seconds": 0.002}
    return _LIMITS.model_copy(update=changed)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def evidence_text(nonce: str) -> str:
    """Evidence in the documented form; of nothing."""
    claims = DatasetClaims(
        version=1, purpose="dataset", nonce=nonce, job_spec_sha256="0" * 64,
        recipients=Recipients(derived="age1" + "q" * 58, instance="age1" + "p" * 58),
        derived_keys=DerivedKeys(recipient="02" * 33, possession="02" * 33), receipt_key="30" * 91,
        tls_key="30" * 91, gpu_evidence_sha256=None, sandbox={"worker_no_network": True},
        software={"trainer": "0"}, issued_at=0, expires_at=1,
    )  # fmt: skip
    made = Evidence(
        claims=claims, quote="00" * 64, possession="00" * 64, event_log="[]", vm_config="{}", app_compose="{}",
        compose_hash="sha256:" + "2" * 64,
    )  # fmt: skip
    return made.canonical().decode()


class Server:
    """One running server in one stage.

    Args:
        stage: what it looks like.
        spool: empty directory.
    """

    def __init__(self, stage: Stage, spool: Path) -> None:
        self.stage = stage
        self.spool = spool
        self.upload_path: str | None = None
        self.upload_offset = 0
        self.problems: list[str] = []
        self._step = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, *, tls: bool) -> None:
        """Serve, and bring the job to its stage."""
        ours, theirs = socket.socketpair()
        limits = _limits(self.stage)
        self._link = await ControlClient.over_socket(theirs, limits)
        reader, self._supervisor = await asyncio.open_unix_connection(sock=ours)
        gate = UploadGate((PROVIDER.public,) if self.stage.providers else (), None)
        app = build_app(
            self._link, self.spool, max_upload_bytes=MAX_UPLOAD_BYTES, limits=limits, gate=gate
        )
        self._config = http_config(app, limits, None)
        self._config.load()
        self._make = capped_protocol(limits)
        self._state = ServerState()
        self._tasks = [
            asyncio.create_task(self._link.run()),
            asyncio.create_task(self._supervise(reader)),
        ]
        self._listener = await self._listen() if tls else None
        if self.stage.result:
            (self.spool / RESULT_NAME).write_bytes(RESULT)
            await self._tell(
                ResultReady(
                    size=len(RESULT),
                    sha256=ETAG.strip('"'),
                    acknowledgement_sha256=(_digest(ACKNOWLEDGEMENT),),
                )
            )
        if self.stage.token:
            await self._tell(TokenHashes(sha256=(_digest(TOKEN),)))
            await self._tell(PrivateEvent(sealed=PRIVATE))
        self.document = json.loads(await self.body_of("/openapi.json"))
        await self.renew()

    async def stop(self) -> None:
        """Close everything."""
        if self._listener is not None:
            self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._supervisor.close()
        await asyncio.sleep(0)
        for connection in list(self._state.connections):
            connection.transport.abort()
        await asyncio.sleep(0.01)  # closed transports say goodbye in the loop's next rounds

    async def renew(self) -> None:
        """Undo what requests have changed: uploads begun, completed or ended."""
        self.upload_path, self.upload_offset = None, 0
        uploading = self.stage.accept or self.stage.upload != "none"
        await self._reach(accept=uploading)
        if self.stage.upload != "none":
            await self._begin_upload()
        if uploading and not self.stage.accept:
            await self._reach(accept=False)

    async def _begin_upload(self) -> None:
        count = UPLOADED_BYTES if self.stage.upload == "begun" else UPLOAD_BYTES
        tus = "Host: x\r\nTus-Resumable: 1.0.0\r\nConnection: close\r\n"
        made = await self.exchange(
            f"POST /dataset HTTP/1.1\r\n{tus}Upload-Length: {UPLOAD_BYTES}\r\n\r\n".encode()
        )
        place = next(line for line in made.split(b"\r\n") if line.startswith(b"location: "))
        self.upload_path = place.removeprefix(b"location: ").decode()
        head = f"PATCH {self.upload_path} HTTP/1.1\r\n{tus}Upload-Offset: 0\r\nContent-Length: {count}\r\n"
        head += "Content-Type: application/offset+octet-stream\r\n\r\n"
        await self.exchange(head.encode() + bytes(count))
        self.upload_offset = count

    async def body_of(self, path: str) -> bytes:
        """Body of the answer to a plain GET."""
        answer = await self.exchange(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )
        return answer.partition(b"\r\n\r\n")[2]

    async def exchange(self, request: bytes) -> bytes:
        """Send on a connection of its own; all that comes back."""
        reader, writer = await self.connect()
        writer.write(request)
        answer = await reader.read()
        writer.close()
        return answer

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the server."""
        if self._listener is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            address = self._listener.sockets[0].getsockname()
            return await asyncio.open_connection(*address, ssl=context)
        ours, theirs = socket.socketpair()
        await asyncio.get_running_loop().connect_accepted_socket(self._protocol, theirs)
        return await asyncio.open_unix_connection(sock=ours)

    async def _listen(self) -> asyncio.Server:
        context, _ = make_server_context(now=0)
        return await asyncio.get_running_loop().create_server(
            self._protocol, "127.0.0.1", 0, ssl=context
        )

    def _protocol(self) -> asyncio.Protocol:
        return self._make(self._config, self._state, {})

    async def _reach(self, *, accept: bool) -> None:
        """Tell the phase, and wait until it is taken: messages are taken in order."""
        self._step += 1
        await self._tell(OpenUpload(accept=accept, scope=SCOPE))
        status = Status(phase=self.stage.phase, step=self._step, error=self.stage.error)
        await self._tell(StatusUpdate(status=status))
        while self._link.status.step != self._step:
            await asyncio.sleep(0)

    async def _tell(self, message: SupervisorMessage) -> None:
        self._supervisor.write(TO_FRONT.encode(message))
        await self._supervisor.drain()

    async def _supervise(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            message = FROM_FRONT.parse(line)
            if isinstance(message, EvidenceRequest) and self.stage.evidence != "silent":
                await self._tell(self._reply(message))

    def _reply(self, request: EvidenceRequest) -> EvidenceReply:
        if self.stage.evidence == "given":
            return EvidenceReply(id=request.id, evidence=evidence_text(request.nonce), error=None)
        return EvidenceReply(id=request.id, evidence=None, error=ErrorCode(self.stage.evidence))


@asynccontextmanager
async def serving(stage: Stage, spool: Path, *, tls: bool = False) -> AsyncIterator[Server]:
    """A server in a stage, for the time of the context."""
    server = Server(stage, spool)
    await server.start(tls=tls)
    try:
        yield server
    finally:
        await server.stop()
