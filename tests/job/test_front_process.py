"""The supervisor's end of the front's channel, against requests at bad times."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from trainer.attestation.evidence import Evidence
from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, JobError
from trainer.exchange.upload_authorization import UploadScope
from trainer.ipc.channel import Channel
from trainer.ipc.front_messages import (
    Acknowledged,
    EvidenceReply,
    EvidenceRequest,
    FrontMessage,
    ResultReady,
    SupervisorMessage,
    front_channel,
    supervisor_channel,
)
from trainer.job.front_process import FrontProcess

SCOPE = UploadScope(job_spec_sha256="ab" * 32, recipient_sha256=("cd" * 32,))
REQUEST = EvidenceRequest(id=7, nonce="ab" * 32)


@contextmanager
def connected() -> Iterator[tuple[FrontProcess, Channel[SupervisorMessage, FrontMessage]]]:
    """Yields the supervisor's view of a front, and the front's end of the channel."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with process, closing(front_channel(theirs)) as channel:
        front = FrontProcess(process, supervisor_channel(ours))
        front.start_listening()
        yield front, channel
        process.kill()


def test_a_request_without_a_source_of_evidence_gets_a_code() -> None:
    with connected() as (_, channel):
        channel.send(REQUEST)
        assert channel.receive(timeout=20) == EvidenceReply(
            id=7, evidence=None, error=ErrorCode.JOB_BUSY
        )


def test_an_unexpected_error_in_the_evidence_ends_the_wait_for_the_front() -> None:
    """The listening thread has no caller that sees its exception: the job would wait until its timeout."""

    def fail(_nonce: str) -> Evidence:
        raise RuntimeError("a bug")

    with connected() as (front, channel):
        front.serve_evidence(fail)
        channel.send(REQUEST)
        with pytest.raises(JobError) as caught:
            front.wait_arrival(20, SCOPE, regrant=False)
        assert caught.value.code is ErrorCode.FRONT_DIED


def wait_until_taken(channel: Channel[SupervisorMessage, FrontMessage]) -> None:
    """Waits until the supervisor has handled every message before this one."""
    channel.send(REQUEST)
    while not isinstance(channel.receive(timeout=20), EvidenceReply):
        continue


def test_a_front_that_was_taken_over_cannot_acknowledge_a_result() -> None:
    """It faces the network: its claim alone would make the job sign that the provider has the result."""
    right = "ac" * 32
    result = ResultReady(
        size=6, sha256="ab" * 32, acknowledgement_sha256=(sha256_hex(right.encode()),)
    )
    with connected() as (front, channel):
        channel.send(Acknowledged(acknowledgement=right))  # before there is a result
        wait_until_taken(channel)
        front.offer_result(result)
        for claimed in ("00" * 32, result.acknowledgement_sha256[0], result.sha256):
            channel.send(Acknowledged(acknowledgement=claimed))
        wait_until_taken(channel)
        assert not front.wait_acknowledged(0)
        channel.send(Acknowledged(acknowledgement=right))
        assert front.wait_acknowledged(20)
        assert front.has_acknowledgement
        front.offer_result(
            result.model_copy(
                update={"acknowledgement_sha256": (sha256_hex(b"of the next result"),)}
            )
        )
        assert not front.has_acknowledgement


def test_a_result_for_several_providers_is_acknowledged_by_each_of_them() -> None:
    first, second = "a1" * 32, "b2" * 32
    digests = tuple(sha256_hex(value.encode()) for value in (first, second))
    with connected() as (front, channel):
        front.offer_result(ResultReady(size=6, sha256="ab" * 32, acknowledgement_sha256=digests))
        for claimed in (first, first):
            channel.send(Acknowledged(acknowledgement=claimed))
        wait_until_taken(channel)
        assert not front.wait_acknowledged(0)
        channel.send(Acknowledged(acknowledgement=second))
        assert front.wait_acknowledged(20)
