"""Orders and messages: what goes in comes out, and what does not belong is refused."""

from __future__ import annotations

import fcntl
import itertools
import math
import os
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainer.errors import DataError, ErrorCode, ExitCode, JobError, UnavailableError, UsageError
from trainer.ipc.worker_messages import (
    FROM_WORKER,
    MAX_MESSAGE_BYTES,
    MAX_ORDER_BYTES,
    TO_WORKER,
    Failed,
    Finished,
    Message,
    Metrics,
    Preparing,
    Progress,
    TrainingOrder,
    to_worker_channel,
    worker_channel,
)
from trainer.models import MAX_TOTAL_STEPS, Activity
from trainer.sealing.archive import MAX_NAME_BYTES, ArchiveLimits
from trainer.spec import JobSpec

counts = st.integers(0, 2**53 - 1)
steps = st.integers(1, MAX_TOTAL_STEPS)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Progress, step=steps, total_steps=steps),
    st.builds(Preparing, activity=st.sampled_from(Activity), percent=st.integers(0, 100)),
    st.builds(
        Metrics,
        step=counts,
        values=st.dictionaries(
            st.from_regex(r"[a-z][a-z0-9_]{0,63}", fullmatch=True),
            st.floats(allow_nan=False, allow_infinity=False),
        ),
    ),
    st.builds(
        Failed,
        code=st.sampled_from(ErrorCode),
        message=st.text(max_size=100),
        reason=st.none() | st.text(max_size=100),
        file=st.none() | st.text(min_size=1, max_size=100),
        row=st.none() | counts,
        field=st.none() | st.text(max_size=100),
    ),
    st.builds(
        Finished,
        summary=st.dictionaries(st.text(max_size=9), st.text(max_size=9) | counts | st.none()),
    ),
)


@given(messages)
def test_messages_survive_the_line(message: Message) -> None:
    line = FROM_WORKER.encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert FROM_WORKER.parse(line) == message


@given(st.binary(max_size=200))
def test_other_bytes_are_refused(line: bytes) -> None:
    with pytest.raises(JobError) as caught:
        FROM_WORKER.parse(line)
    assert caught.value.code is ErrorCode.WORKER_DIED


@pytest.mark.parametrize(
    "line",
    [
        b'{"kind": "progress", "step": 1, "total_steps": 2, "eta_seconds": 1}',
        b'{"kind": "progress", "step": 0, "total_steps": 2}',
        b'{"kind": "preparing", "activity": "reading a row", "percent": 1}',
        b'{"kind": "preparing", "activity": "loading", "percent": 101}',
        b'{"kind": "progress", "step": 1, "total_steps": 100000001}',
        b'{"kind": "progress", "step": "1", "total_steps": 2}',
        b'{"kind": "metrics", "step": 1, "values": {"loss": NaN}}',
        b'{"kind": "failed", "code": "no-such-code", "message": ""}',
        b'{"kind": "other"}',
        b" " * (MAX_MESSAGE_BYTES + 1),
    ],
)
def test_wrong_messages_are_refused(line: bytes) -> None:
    with pytest.raises(JobError):
        FROM_WORKER.parse(line)


def test_metrics_are_finite_numbers() -> None:
    with pytest.raises(ValidationError):
        Metrics(step=1, values={"loss": math.nan})


def test_an_order_survives_the_pipe(make_spec: Callable[..., JobSpec]) -> None:
    order = TrainingOrder(
        spec=make_spec(), model_dir=Path("/m"), data_files={"a": Path("/d/a")}, output_dir=Path("/o"),
        split_key="5a" * 32,
    )  # fmt: skip
    parsed = TO_WORKER.parse(TO_WORKER.encode(order))
    assert isinstance(parsed, TrainingOrder)
    assert parsed == order
    assert parsed.spec.sha256() == order.spec.sha256()


def test_the_largest_bundle_and_job_spec_fit_into_an_order(
    make_spec: Callable[..., JobSpec],
) -> None:
    """The provider chooses number and names of the data files: what a bundle may hold, a worker can be sent."""
    files = ArchiveLimits().max_files - 2  # without grant and manifest
    names = [f"{number:04d}".ljust(MAX_NAME_BYTES - len("data/"), '"') for number in range(files)]
    workspace = Path("/" + "w/" * 1900)
    template = "{{ a }}".ljust(65536, "\x1b")  # each of these is six characters of JSON
    order = TrainingOrder(
        spec=make_spec(data={"chat_template": template}),
        model_dir=workspace,
        data_files={name: workspace / name for name in names},
        output_dir=workspace,
        split_key="5a" * 32,
    )
    assert len(TO_WORKER.encode(order)) <= MAX_ORDER_BYTES


def test_an_order_that_is_not_one_is_not_quoted() -> None:
    with pytest.raises(UsageError) as caught:
        TO_WORKER.parse(b'{"kind": "training-order", "spec": {"version": "canary"}}')
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_failure_becomes_the_same_error_again() -> None:
    error = DataError(
        ErrorCode.DATASET_OVERLONG,
        "too long",
        file="f",
        row=3,
        field="text",
        expected="short",
        found=9,
        hint="cut",
    )
    again = Failed.of(error).as_error()
    assert isinstance(again, DataError)
    assert (again.code, again.reason, again.file, again.row, again.field) == (
        error.code,
        "too long",
        "f",
        3,
        "text",
    )
    assert str(again) == str(error)
    # Refused on the provider's machine nothing was sent; refused in the job, the job has failed.
    assert (error.exit_code, again.exit_code) == (ExitCode.LOCAL_DATA, ExitCode.JOB)
    plain = Failed.of(JobError(ErrorCode.OUT_OF_MEMORY, "no memory")).as_error()
    assert (type(plain), plain.code) == (JobError, ErrorCode.OUT_OF_MEMORY)


def test_long_texts_are_cut_to_fit_the_line() -> None:
    message = Failed.of(
        JobError(ErrorCode.MODEL_INVALID, "x" * 10**6, expected="y" * 10**6, found="z" * 10**6)
    )
    assert FROM_WORKER.parse(FROM_WORKER.encode(message)) == message


def test_messages_are_written_whole() -> None:
    read, write = os.pipe()
    message = Progress(step=1, total_steps=2)
    worker = worker_channel(-1, write)
    worker.send(message)
    worker.close()
    supervisor = to_worker_channel(read, -1)
    assert supervisor.receive(timeout=1) == message
    assert supervisor.receive(timeout=1) is None
    supervisor.close()


def test_a_message_that_trickles_in_does_not_prolong_the_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is due meanwhile would become public when the sender wants it to."""
    reading, writing = os.pipe()
    supervisor = to_worker_channel(reading, -1)
    os.write(writing, b" " * 60_000)
    monkeypatch.setattr("trainer.ipc.channel._READ_BYTES", 1)
    seconds = itertools.count()
    monkeypatch.setattr("trainer.ipc.channel.time.monotonic", lambda: next(seconds))
    with pytest.raises(UnavailableError):
        supervisor.receive(timeout=10)
    left = bytearray(4)
    fcntl.ioctl(reading, termios.FIONREAD, left)
    assert int.from_bytes(left, sys.byteorder) > 59_000, "it stopped at its deadline"
    supervisor.close()
    os.close(writing)


def test_a_timeout_of_zero_takes_what_has_arrived() -> None:
    reading, writing = os.pipe()
    supervisor, message = to_worker_channel(reading, -1), Progress(step=1, total_steps=2)
    os.write(writing, FROM_WORKER.encode(message))
    assert supervisor.receive(timeout=0) == message
    supervisor.close()
    os.close(writing)
