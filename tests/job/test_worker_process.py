"""A worker is believed to be confined only if that is the first thing it says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from trainer.errors import ErrorCode, JobError
from trainer.ipc import worker_messages as protocol
from trainer.ipc.channel import Channel
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
        os.write(writing, protocol.FROM_WORKER.encode(message))
    os.close(writing)
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with closing(channel_to(process, reading)) as channel, process:
        yield worker.WorkerProcess(process, channel)
        process.kill()


Ends = Channel[protocol.Message, protocol.WorkerInstruction]


def channel_to(process: subprocess.Popen[bytes], reading: int) -> Ends:
    assert process.stdin is not None
    return protocol.to_worker_channel(reading, os.dup(process.stdin.fileno()))


CONFINED = protocol.Confined(sandbox={SandboxProperty.WORKER_NO_NETWORK: True})
PROGRESS = protocol.Progress(step=1, total_steps=2)


class Heard:
    """Follows a worker and releases nothing."""

    def wait_seconds(self) -> None: ...

    def release(self) -> None: ...

    def take(self, message: protocol.TrainingMessage) -> None: ...

    def finish(self) -> None: ...


def test_its_first_word() -> None:
    with saying(CONFINED) as started:
        assert started.wait_confined() == {SandboxProperty.WORKER_NO_NETWORK: True}


@pytest.mark.parametrize(
    "messages", [(), (PROGRESS,), (PROGRESS, CONFINED)], ids=["nothing", "other", "late"]
)
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
        spec=spec(),
        model_dir=tmp_path,
        data_files={"a": tmp_path},
        output_dir=tmp_path,
        split_key="5a" * 32,
    )
    command = [sys.executable, "-c", "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"]
    reading, writing = os.pipe()
    os.close(writing)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with closing(channel_to(process, reading)) as channel, process:
        assert process.stdin is not None
        process.stdin.close()
        started = worker.WorkerProcess(process, channel, ahead if prepares else None)
        started.announce_model()
        with pytest.raises(JobError):  # it says nothing
            started.train(order, Heard())
        assert process.stdout is not None
        instructions: list[protocol.WorkerInstruction]
        instructions = [ahead, protocol.ModelReady(), order] if prepares else [order]
        assert process.stdout.read() == b"".join(
            protocol.TO_WORKER.encode(one) for one in instructions
        )


def test_a_worker_that_died_is_noticed_where_it_is_heard(tmp_path: Path) -> None:
    ahead = protocol.Preparation(spec=spec(), model_dir=tmp_path, output_dir=tmp_path)
    reading, writing = os.pipe()
    os.close(writing)
    process = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
    process.wait(20)
    with closing(channel_to(process, reading)) as channel:
        started = worker.WorkerProcess(process, channel, ahead)
        started.announce_model()
        with pytest.raises(JobError):
            started.wait_confined()
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()


def test_an_order_that_is_too_large_is_not_taken_for_a_dead_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = protocol.TrainingOrder(
        spec=spec(),
        model_dir=tmp_path,
        data_files={"a": tmp_path},
        output_dir=tmp_path,
        split_key="5a" * 32,
    )
    monkeypatch.setattr(protocol, "TO_WORKER", replace(protocol.TO_WORKER, max_bytes=100))
    with saying(CONFINED) as started, pytest.raises(JobError) as caught:
        started.train(order, Heard())
    assert caught.value.code is ErrorCode.JOB_FAILED


class Releasing(Heard):
    """Has something to release all the time; the worker is silent until the third release, and then ends."""

    def __init__(self, writing: int) -> None:
        self._writing = writing
        self.releases = 0

    def wait_seconds(self) -> float:  # type: ignore[override]
        return 0.01

    def release(self) -> None:
        self.releases += 1
        if self.releases == 3:
            os.write(
                self._writing, protocol.FROM_WORKER.encode(protocol.Finished(summary={"steps": 2}))
            )
            os.close(self._writing)


def test_what_is_due_is_released_while_the_worker_is_silent(tmp_path: Path) -> None:
    """The worker's next message would tell when, so nothing waits for it."""
    order = protocol.TrainingOrder(
        spec=spec(),
        model_dir=tmp_path,
        data_files={"a": tmp_path},
        output_dir=tmp_path,
        split_key="5a" * 32,
    )
    (events, writing), (orders, sending) = os.pipe(), os.pipe()
    follower = Releasing(writing)
    with closing(protocol.to_worker_channel(events, sending)) as channel:
        started = worker.WorkerProcess(cast("Any", None), channel)
        assert started.train(order, follower) == {"steps": 2}
    os.close(orders)
    assert follower.releases == 3


def test_silence_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "CONFINED_SECONDS", 0.1)
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with closing(channel_to(process, reading)) as channel, process:
        with pytest.raises(JobError) as caught:
            worker.WorkerProcess(process, channel).wait_confined()
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
