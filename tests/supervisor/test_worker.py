"""A worker is believed to be confined only if that is the first thing it says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from trainer.confinement.walls import Wall
from trainer.errors import ErrorCode, JobError
from trainer.supervisor import worker
from trainer.worker import protocol


@contextmanager
def saying(*messages: protocol.Message) -> Iterator[worker.Worker]:
    """A process that says this and then waits for its stdin to end."""
    reading, writing = os.pipe()
    for message in messages:
        os.write(writing, protocol.encode_message(message))
    os.close(writing)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with os.fdopen(reading, "rb") as stream, process:
        yield worker.Worker(process, stream)
        process.kill()


CONFINED = protocol.Confined(walls={Wall.WORKER_NO_NETWORK: True})
PROGRESS = protocol.Progress(step=1, total_steps=2, eta_seconds=None)


def test_its_first_word() -> None:
    with saying(CONFINED) as started:
        assert started.wait_confined() == {Wall.WORKER_NO_NETWORK: True}


@pytest.mark.parametrize("messages", [(), (PROGRESS,), (PROGRESS, CONFINED)], ids=["nothing", "other", "late"])
def test_another_first_word_ends_the_job(messages: tuple[protocol.Message, ...]) -> None:
    with saying(*messages) as started, pytest.raises(JobError) as caught:
        started.wait_confined()
    assert caught.value.code is ErrorCode.WORKER_DIED


def test_silence_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "CONFINED_SECONDS", 0.1)
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with os.fdopen(reading, "rb") as stream, process:
        with pytest.raises(JobError) as caught:
            worker.Worker(process, stream).wait_confined()
        process.kill()
    os.close(writing)
    assert caught.value.code is ErrorCode.WORKER_DIED
