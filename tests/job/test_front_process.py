"""The supervisor's end of the front's channel, against requests at bad times."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from trainer.attestation.evidence import Evidence
from trainer.errors import ErrorCode, JobError
from trainer.ipc.channel import Channel
from trainer.ipc.front_messages import (
    EvidenceReply,
    EvidenceRequest,
    FrontMessage,
    SupervisorMessage,
    front_channel,
    supervisor_channel,
)
from trainer.job.front_process import FrontProcess

REQUEST = EvidenceRequest(id=7, nonce="ab" * 32)


@contextmanager
def connected() -> Iterator[tuple[FrontProcess, Channel[SupervisorMessage, FrontMessage]]]:
    """Yields the supervisor's view of a front, and the front's end of the channel."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with process, closing(front_channel(theirs)) as channel:
        front = FrontProcess(process, supervisor_channel(ours))
        front.start_listening()
        yield front, channel
        process.kill()


def test_a_request_without_a_source_of_evidence_gets_a_code() -> None:
    with connected() as (_, channel):
        channel.send(REQUEST)
        assert channel.receive(timeout=20) == EvidenceReply(id=7, evidence=None, error=ErrorCode.JOB_BUSY)


def test_an_unexpected_error_in_the_evidence_ends_the_wait_for_the_front() -> None:
    """The listening thread has no caller that sees its exception: the job would wait until its timeout."""

    def fail(_nonce: str) -> Evidence:
        raise RuntimeError("a bug")

    with connected() as (front, channel):
        front.serve_evidence(fail)
        channel.send(REQUEST)
        with pytest.raises(JobError) as caught:
            front.wait_upload(20)
        assert caught.value.code is ErrorCode.FRONT_DIED
