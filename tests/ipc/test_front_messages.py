"""The control channel: what passes, and what a hostile other end cannot do."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import ErrorCode, JobError, UnavailableError
from trainer.exchange.upload_authorization import UploadScope
from trainer.ipc.channel import Channel
from trainer.ipc.front_messages import (
    FROM_FRONT,
    TO_FRONT,
    Acknowledged,
    EvidenceReply,
    EvidenceRequest,
    FrontFailed,
    FrontMessage,
    OpenUpload,
    PrivateEvent,
    Ready,
    RegrantReady,
    ResultReady,
    Shutdown,
    StatusUpdate,
    SupervisorMessage,
    TokenHashes,
    UploadReady,
    front_channel,
    supervisor_channel,
)
from trainer.models import Phase, Status

DIGEST, KEY = "ab" * 32, "30" * 91
MESSAGES_OF_THE_FRONT: list[FrontMessage] = [
    Ready(port=8443, tls_key=KEY),
    Ready(port=0, tls_key=None),
    EvidenceRequest(id=1, nonce=DIGEST),
    UploadReady(size=5),
    RegrantReady(),
    Acknowledged(acknowledgement=DIGEST),
    FrontFailed(code=ErrorCode.FRONT_DIED),
]
MESSAGES_OF_THE_SUPERVISOR: list[SupervisorMessage] = [
    EvidenceReply(id=1, evidence='{"a":"\n\\u00e9"}', error=None),
    EvidenceReply(id=1, evidence=None, error=ErrorCode.GUEST_AGENT_UNAVAILABLE),
    StatusUpdate(status=Status(phase=Phase.TRAINING, step=1, total_steps=2)),
    OpenUpload(accept=True),
    OpenUpload(accept=True, regrant=True),
    OpenUpload(accept=True, scope=UploadScope(job_spec_sha256=DIGEST, recipient_sha256=(DIGEST,))),
    TokenHashes(sha256=(DIGEST,)),
    PrivateEvent(sealed="QUFBQQ=="),
    ResultReady(size=9, sha256=DIGEST, acknowledgement_sha256=(DIGEST,)),
    Shutdown(),
]

Ends = tuple[Channel[FrontMessage, SupervisorMessage], Channel[SupervisorMessage, FrontMessage]]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    pair = supervisor_channel(ours), front_channel(theirs)
    yield pair
    for end in pair:
        end.close()


def test_every_message_passes(ends: Ends) -> None:
    supervisor, front = ends
    for from_front in MESSAGES_OF_THE_FRONT:
        front.send(from_front)
    for from_supervisor in MESSAGES_OF_THE_SUPERVISOR:
        supervisor.send(from_supervisor)
    assert [supervisor.receive() for _ in MESSAGES_OF_THE_FRONT] == MESSAGES_OF_THE_FRONT
    assert [front.receive() for _ in MESSAGES_OF_THE_SUPERVISOR] == MESSAGES_OF_THE_SUPERVISOR
    front.close()
    assert supervisor.receive() is None


def test_large_evidence_passes_while_the_other_end_waits(ends: Ends) -> None:
    supervisor, front = ends
    reply = EvidenceReply(id=1, evidence='"\\' * (7 << 20), error=None)
    sender = threading.Thread(target=supervisor.send, args=[reply])
    sender.start()
    assert front.receive(timeout=20) == reply
    sender.join()


def test_timeout_keeps_what_came(ends: Ends) -> None:
    supervisor, front = ends
    line = FROM_FRONT.encode(UploadReady(size=5))
    os.write(front.fileno(), line[:10])
    with pytest.raises(UnavailableError) as caught:
        supervisor.receive(timeout=0.05)
    assert caught.value.code is ErrorCode.TIMEOUT
    os.write(front.fileno(), line[10:])
    assert supervisor.receive(timeout=1) == UploadReady(size=5)


def test_endless_line_is_not_collected(ends: Ends) -> None:
    supervisor, front = ends
    os.write(front.fileno(), b" " * 10_000)
    with pytest.raises(JobError):
        supervisor.receive(timeout=1)


def test_end_inside_a_message(ends: Ends) -> None:
    supervisor, front = ends
    os.write(front.fileno(), b'{"kind":"ack')
    front.close()
    with pytest.raises(JobError):
        supervisor.receive(timeout=1)


def test_sending_to_an_end_that_is_gone(ends: Ends) -> None:
    supervisor, front = ends
    front.close()
    with pytest.raises(JobError) as caught:
        supervisor.send(Shutdown())
    assert caught.value.code is ErrorCode.FRONT_DIED


def test_receiving_with_a_timeout_does_not_hurry_sends(ends: Ends) -> None:
    supervisor, front = ends
    sender = threading.Thread(
        target=supervisor.send, args=[EvidenceReply(id=1, evidence="x" * (4 << 20), error=None)]
    )
    sender.start()
    with pytest.raises(UnavailableError):
        supervisor.receive(timeout=0.05)
    time.sleep(0.1)
    assert isinstance(front.receive(timeout=5), EvidenceReply)
    sender.join()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"{}",
        b'{"kind":"unknown"}',
        b'{"kind":"acknowledged"}',
        b'{"kind":"acknowledged","acknowledgement":"yes"}',
        b'{"kind":"upload-ready","size":5,"extra":1}',
        b'{"kind":"upload-ready","kind":"upload-ready","size":5}',
        b'{"kind":"upload-ready","size":"5"}',
        b'{"kind":"upload-ready","size":-1}',
        b'{"kind":"upload-ready","size":1e999}',
        b'{"kind":"front-failed","code":"free text"}',
        b'{"kind":"shutdown"}',
        b'{"kind":"evidence-request","id":1,"nonce":"../../etc"}',
        b"\xff",
    ],
)
def test_what_the_front_cannot_say(line: bytes) -> None:
    with pytest.raises(JobError):
        FROM_FRONT.parse(line)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(line: bytes) -> None:
    for parse in (FROM_FRONT.parse, TO_FRONT.parse):
        with pytest.raises(JobError):
            parse(b"\x00" + line)
