"""SIGTERM: an error, unless something better can be done, and even then only the first time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing

import pytest

from trainer.errors import ErrorCode, JobError
from trainer.ipc.worker_messages import to_worker_channel
from trainer.job import worker_process as worker
from trainer.job.termination import handle_termination


def test_it_is_an_error_where_it_arrives() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with handle_termination() as state:
        assert not state.signalled
        with pytest.raises(JobError) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.code is ErrorCode.INTERRUPTED
        assert state.signalled
    assert signal.getsignal(signal.SIGTERM) is before


def test_something_else_may_be_done_once() -> None:
    done: list[str] = []
    with handle_termination() as state:
        with state.redirected_to(lambda: done.append("passed on")):
            signal.raise_signal(signal.SIGTERM)
            assert done == ["passed on"]
            with pytest.raises(JobError):
                signal.raise_signal(signal.SIGTERM)
        with pytest.raises(JobError):
            signal.raise_signal(signal.SIGTERM)
    assert done == ["passed on"]


def test_a_worker_that_does_not_end_in_time_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SAVE_SECONDS", 0.2)
    ignoring = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code = f"import signal, time\n{ignoring}\nprint(1, flush=True)\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"1\n"
    reading, writing = os.pipe()
    os.close(writing)
    with closing(to_worker_channel(reading, -1)) as channel, process:
        worker.WorkerProcess(process, channel).interrupt()
        assert process.wait(20) == -signal.SIGKILL
