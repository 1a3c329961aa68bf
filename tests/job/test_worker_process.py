"""A worker is believed to be confined only if that is the first thing it says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from trainer.errors import ErrorCode, JobError
from trainer.ipc import worker_messages as protocol
from trainer.job import child_process as children
from trainer.job import worker_process as worker
from trainer.job.workspace import Workspace
from trainer.sandbox.plan import Role, SandboxPlan
from trainer.sandbox.properties import SandboxProperty
from trainer.spec import JobSpec, parse_job_spec


@contextmanager
def saying(*messages: protocol.Message) -> Iterator[worker.WorkerProcess]:
    """A process that says this and then waits for its stdin to end."""
    reading, writing = os.pipe()
    for message in messages:
        os.write(writing, protocol.encode_message(message))
    os.close(writing)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with os.fdopen(reading, "rb") as stream, process:
        yield worker.WorkerProcess(process, stream)
        process.kill()


CONFINED = protocol.Confined(walls={SandboxProperty.WORKER_NO_NETWORK: True})
PROGRESS = protocol.Progress(step=1, total_steps=2, eta_seconds=None)


def test_its_first_word() -> None:
    with saying(CONFINED) as started:
        assert started.wait_confined() == {SandboxProperty.WORKER_NO_NETWORK: True}


@pytest.mark.parametrize("messages", [(), (PROGRESS,), (PROGRESS, CONFINED)], ids=["nothing", "other", "late"])
def test_another_first_word_ends_the_job(messages: tuple[protocol.Message, ...]) -> None:
    with saying(*messages) as started, pytest.raises(JobError) as caught:
        started.wait_confined()
    assert caught.value.code is ErrorCode.WORKER_DIED


def spec() -> JobSpec:
    digests = "{config.json: " + "a" * 64 + ", model.safetensors: " + "b" * 64 + "}"
    text = f"version: 1\nmodel: {{model_name_or_path: /m, model_file_sha256: {digests}}}\n"
    return parse_job_spec(text.encode())


@pytest.mark.parametrize("prepares", [True, False])
def test_it_is_told_of_the_model_only_where_it_prepares(prepares: bool, tmp_path: Path) -> None:
    ahead = protocol.Preparation(spec=spec(), model_dir=tmp_path, output_dir=tmp_path)
    order = protocol.TrainingOrder(
        spec=spec(), model_dir=tmp_path, data_files={"a": tmp_path}, output_dir=tmp_path
    )
    command = [sys.executable, "-c", "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"]
    reading, writing = os.pipe()
    os.close(writing)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with os.fdopen(reading, "rb") as stream, process:
        started = worker.WorkerProcess(process, stream, ahead if prepares else None)
        started.model_is_there()
        with pytest.raises(JobError):  # it says nothing
            started.train(order, lambda _message: None)
        assert process.stdout is not None
        expected = ahead.encode() + protocol.MODEL_READY if prepares else b""
        assert process.stdout.read() == expected + order.encode()


def test_a_worker_that_died_is_noticed_where_it_is_heard(tmp_path: Path) -> None:
    ahead = protocol.Preparation(spec=spec(), model_dir=tmp_path, output_dir=tmp_path)
    reading, writing = os.pipe()
    os.close(writing)
    process = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
    process.wait(20)
    with os.fdopen(reading, "rb") as stream:
        started = worker.WorkerProcess(process, stream, ahead)
        started.model_is_there()
        with pytest.raises(JobError):
            started.wait_confined()
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()


def test_silence_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "CONFINED_SECONDS", 0.1)
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with os.fdopen(reading, "rb") as stream, process:
        with pytest.raises(JobError) as caught:
            worker.WorkerProcess(process, stream).wait_confined()
        process.kill()
    os.close(writing)
    assert caught.value.code is ErrorCode.WORKER_DIED


class _Started(Exception):  # noqa: N818 -- no error: what the test waits for
    """A process would have been started."""


@pytest.mark.parametrize("gpu", [True, False])
def test_only_a_worker_without_a_gpu_gets_the_allocator(
    gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, str] = {}

    def start(*_arguments: object, environment: dict[str, str], **_options: object) -> None:
        given.update(environment)
        raise _Started

    monkeypatch.setattr(worker, "allocator_variables", lambda: {"LD_PRELOAD": "/usr/lib/some.so"})
    monkeypatch.setattr(children, "start_module", start)
    plan = SandboxPlan(role=Role.WORKER, gpu=gpu)
    with pytest.raises(_Started), worker.worker_process(Workspace(tmp_path), plan, spec()):
        pass
    assert ("LD_PRELOAD" in given) is not gpu
