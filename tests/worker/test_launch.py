"""Several worker processes from one order: the same result, and an end in bounded time when one is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.fork_server import ForkedProcess, ForkServer
from tests.training.conftest import pinning
from tests.training.forked_worker import in_training
from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, ExitCode, JobError
from trainer.ipc.worker_messages import (
    FROM_WORKER,
    TO_WORKER,
    Confined,
    Failed,
    Finished,
    Metrics,
    Preparing,
    Progress,
    Saved,
    TrainingOrder,
    to_worker_channel,
    worker_channel,
)
from trainer.model_files.adapter_tensors import WEIGHTS_FILE
from trainer.provider import find_data_files
from trainer.sandbox import privileges
from trainer.sandbox.plan import Role, SandboxPlan
from trainer.sandbox.properties import SandboxProperty
from trainer.spec import JobSpec
from trainer.training.adapter import attach_adapter, save_adapter
from trainer.training.rank import ProcessRank
from trainer.worker import launch

ROOT = Path(__file__).parents[2]
CANARY = "canary-51c0de"

RunWorker = Callable[..., Any]
MakeSpec = Callable[..., JobSpec]


def test_two_processes_do_the_job_of_one(
    run_worker: RunWorker, chat_file: Path, make_spec: MakeSpec
) -> None:
    batch = {"per_device_train_batch_size": 2, "eval_steps": 2, "learning_rate": 0.001}
    two = run_worker(
        chat_file, make_spec(train={**batch, "num_processes": 2}), processes=2, started_anew=True
    )
    assert two.code == ExitCode.DONE, two.log
    finished = two.messages[-1]
    assert isinstance(finished, Finished)
    assert [message.step for message in two.messages if isinstance(message, Progress)] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    assert finished.summary["environment"]["processes"] == "2"  # type: ignore[index, call-overload]
    written = {file.relative_to(two.output_dir).as_posix() for file in two.output_dir.rglob("*")}
    assert written == {
        "adapter", "adapter/README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
        "adapter/chat_template.jinja", "adapter/generation_config.json", "adapter/tokenizer.json",
        "adapter/tokenizer_config.json",
        "report", "report/metrics.jsonl", "report/report.html", "report/samples.json", "report/summary.json",
    }  # fmt: skip
    adapter = load_file(two.output_dir / "adapter" / "adapter_model.safetensors")

    one = run_worker(chat_file, make_spec(train={**batch, "gradient_accumulation_steps": 2}))
    assert one.messages[-1].summary["trained_tokens"] == finished.summary["trained_tokens"]
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    for name, tensor in load_file(one.output_dir / "adapter" / "adapter_model.safetensors").items():
        torch.testing.assert_close(adapter[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_base_spread_over_two_processes(
    run_worker: RunWorker, tmp_path: Path, tiny_model: Path, chat_file: Path, make_spec: MakeSpec
) -> None:
    """The samples before and after are the model's own answers, which take all processes; the adapter is whole.

    Both start from an earlier adapter, whose files come with the rows: two steps of Adam move no number of it by
    more than twice the learning rate.
    """
    train = {
        "max_steps": 2,
        "num_processes": 2,
        "fsdp": "full_shard",
        "per_device_train_batch_size": 2,
    }
    spec = make_spec(lora={"start_from": "adapter"}, train=train)
    torch.manual_seed(5)
    made = attach_adapter(AutoModelForCausalLM.from_pretrained(tiny_model), spec.lora)
    save_adapter(made, pinning(spec, tiny_model).model, tmp_path / "earlier")
    data = find_data_files([chat_file], tmp_path / "earlier")
    ended = run_worker(data, spec, processes=2)
    assert ended.code == ExitCode.DONE, ended.log
    summary = json.loads((ended.output_dir / "report" / "summary.json").read_bytes())
    assert summary["environment"]["base"] == "spread over all"
    assert summary["environment"]["forward"] == "selected"
    assert summary["adapter"]["start adapter (SHA-256)"] == sha256_hex(
        data[WEIGHTS_FILE].read_bytes()
    )
    assert summary["eval_loss_after"] < summary["eval_loss_before"]
    assert len(json.loads((ended.output_dir / "report" / "samples.json").read_bytes())) > 0
    adapter = load_file(ended.output_dir / "adapter" / "adapter_model.safetensors")
    assert {min(one.shape) for one in adapter.values()} == {4}
    for name, tensor in load_file(data[WEIGHTS_FILE]).items():
        torch.testing.assert_close(
            adapter[name], tensor, rtol=0, atol=2.01 * spec.train.learning_rate
        )


def losses(ended: Any) -> list[float]:
    metrics = [message.values for message in ended.messages if isinstance(message, Metrics)]
    return [values["loss"] for values in metrics if "loss" in values]


def test_what_all_of_them_find_wrong_is_said_once(
    run_worker: RunWorker, tmp_path: Path, chat_file: Path
) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text(chat_file.read_text() + f'{{"text": ["{CANARY}"]}}\n')
    ended = run_worker(data, processes=2)
    *before, message = ended.messages
    assert {type(each) for each in before} <= {Preparing}
    assert isinstance(message, Failed)
    assert (message.code, message.row, message.field) == (ErrorCode.DATASET_ROW_INVALID, 40, "text")
    assert ended.code == ExitCode.JOB
    assert CANARY.encode() not in ended.sent
    assert list(ended.output_dir.iterdir()) == []


StartTraining = Callable[[TrainingOrder], AbstractContextManager[tuple[ForkedProcess, IO[bytes]]]]


@pytest.fixture
def training(stack_server: ForkServer) -> StartTraining:
    """`with training(order) as (process, events)`: a worker of two processes in the middle of a long training."""

    return lambda order: in_training(stack_server, order, 2)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def endless(
    chat_file: Path, make_spec: MakeSpec, tiny_model: Path, tmp_path: Path
) -> TrainingOrder:
    (tmp_path / "output").mkdir()
    return TrainingOrder(
        spec=pinning(
            make_spec(
                train={"max_steps": 10**6, "num_processes": 2}, data={"test_split_size": 0.0}
            ),
            tiny_model,
        ),
        model_dir=tiny_model,
        data_files={"chat.jsonl": chat_file},
        output_dir=tmp_path / "output",
        split_key="5a" * 32,
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_training(
    rank: int, endless: TrainingOrder, training: StartTraining
) -> None:
    with training(endless) as (process, events):
        pids = children(process.pid)
        assert len(pids) == 2
        os.kill(pids[rank], signal.SIGKILL)
        *_, last = events
        assert process.wait(launch.GRACE_SECONDS + 30) == ExitCode.JOB
    message = FROM_WORKER.parse(last)
    assert isinstance(message, Failed)
    assert message.code is ErrorCode.WORKER_DIED
    assert message.message == f"process {rank + 1} of 2 ended without a word"
    assert message.found == "signal 9"
    assert not any(is_alive(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_all_end_with_the_one_that_made_them(
    number: signal.Signals, endless: TrainingOrder, training: StartTraining
) -> None:
    with training(endless) as (process, events):
        pids = children(process.pid)
        process.send_signal(number)
        said = list(events)
        process.wait(30)
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in pids)
    if number == signal.SIGTERM:
        saved, message = (FROM_WORKER.parse(line) for line in said[-2:])
        assert isinstance(saved, Saved)
        assert isinstance(message, Failed)
        assert message.code is ErrorCode.INTERRUPTED


def test_told_to_end_they_leave_a_state_to_go_on_from(
    endless: TrainingOrder, training: StartTraining, make_spec: MakeSpec, tmp_path: Path
) -> None:
    """The state is the first process's; noise and dropout of the others follow from it: the same bits."""
    steps = 60
    train = {"max_steps": steps, "num_processes": 2, "neftune_noise_alpha": 5.0, "eval_steps": 5}
    spec = pinning(
        make_spec(train=train, lora={"lora_dropout": 0.2}, output={"samples": 0}), endless.model_dir
    )

    def order(name: str, resume: Path | None = None) -> TrainingOrder:
        (tmp_path / name).mkdir()
        return endless.model_copy(
            update={"spec": spec, "output_dir": tmp_path / name, "resume_dir": resume}
        )

    with training(order("whole")) as (process, events):
        assert isinstance(FROM_WORKER.parse(list(events)[-1]), Finished)
    with training(order("stopped")) as (process, events):
        process.send_signal(signal.SIGTERM)
        saved = [
            message for line in events if isinstance(message := FROM_WORKER.parse(line), Saved)
        ]
        assert process.wait(30) == ExitCode.JOB
    assert 1 <= saved[-1].step < steps, "the signal came too late for this test to show anything"
    checkpoint = tmp_path / "stopped" / "checkpoints" / str(saved[-1].step)
    with training(order("resumed", checkpoint)) as (process, events):
        assert isinstance(FROM_WORKER.parse(list(events)[-1]), Finished)
    adapters = [
        tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "resumed")
    ]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def is_alive(pid: int) -> bool:
    """Whether it runs; one that only waits to be counted as dead does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


HANGING = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from trainer.errors import ErrorCode, JobError
from trainer.worker import __main__ as worker, launch
launch.GRACE_SECONDS = 0.5
def work(seat, events):
    sys.stdin.buffer.read()
    if seat.rank == 1:
        raise JobError(ErrorCode.OUT_OF_MEMORY, "too much")
    time.sleep(600)
def told(seat, events):
    return worker._reporting_failure(lambda events: work(seat, events), events)
events = worker.worker_channel(0, int(sys.argv[1]))
sys.exit(worker._reporting_failure(lambda events: launch.launch(2, None, events, told), events))
"""


def test_one_that_hangs_does_not_hold_up_the_failure_of_another(endless: TrainingOrder) -> None:
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", HANGING, str(write)], stdin=subprocess.PIPE, pass_fds=(write,)
    ) as one:
        os.close(write)
        one.communicate(TO_WORKER.encode(endless), timeout=60)
    with os.fdopen(read, "rb") as events:
        # Its end comes only when no process holds the other end any more.
        (message,) = [FROM_WORKER.parse(line) for line in events]
    assert isinstance(message, Failed)
    assert message.code is ErrorCode.OUT_OF_MEMORY


def ended(*failures: ErrorCode | None, status: int = 0) -> list[launch.RankProcess]:
    told = [None if code is None else Failed(code=code, message=code.value) for code in failures]
    return [
        launch.RankProcess(1, to_worker_channel(-1, -1), -1, failure=one, status=status)
        for one in told
    ]


@pytest.mark.parametrize(
    ("members", "code"),
    [
        (ended(ErrorCode.WORKER_DIED, ErrorCode.OUT_OF_MEMORY), ErrorCode.OUT_OF_MEMORY),
        (ended(ErrorCode.INTERNAL, ErrorCode.TRAINING_DIVERGED), ErrorCode.TRAINING_DIVERGED),
        (ended(ErrorCode.WORKER_DIED, ErrorCode.INTERNAL), ErrorCode.INTERNAL),
        (ended(ErrorCode.INTERNAL, None, status=signal.SIGKILL), ErrorCode.WORKER_DIED),
        (ended(None, ErrorCode.OUT_OF_MEMORY, status=signal.SIGKILL), ErrorCode.OUT_OF_MEMORY),
    ],
)
def test_of_several_failures_the_one_that_explains_the_rest(
    members: list[launch.RankProcess], code: ErrorCode
) -> None:
    assert launch._verdict(members).code is code


def test_a_killed_process_is_named() -> None:
    error = launch._verdict(ended(ErrorCode.INTERNAL, None, status=signal.SIGKILL))
    assert (error.message, error.found) == ("process 2 of 2 ended without a word", "signal 9")


def test_the_walls_that_stand_around_every_one() -> None:
    def saying(sandbox: dict[SandboxProperty, bool]) -> launch.RankProcess:
        read, write = os.pipe()
        os.write(write, FROM_WORKER.encode(Confined(sandbox=sandbox)))
        os.close(write)
        return launch.RankProcess(1, to_worker_channel(read, -1), -1)

    one, other = SandboxProperty.WORKER_NO_NETWORK, SandboxProperty.WORKER_NO_PROGRAMS
    members = [saying({one: True, other: True}), saying({one: False, other: True})]
    assert launch._common_properties({one: True, other: True}, members) == {one: False, other: True}
    assert launch._common_properties({one: True}, [saying({})]) == {one: False}, (
        "what was not measured does not stand"
    )


def test_without_a_network_of_their_own_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "leave_network", lambda: False)
    monkeypatch.setattr(launch, "_fork", None)
    read, write = os.pipe()
    plan = SandboxPlan(role=Role.WORKER, processes=2)
    with pytest.raises(JobError) as caught:
        launch.launch(2, plan, worker_channel(-1, write), lambda *_: ExitCode.DONE)
    assert caught.value.code is ErrorCode.SANDBOX_INCOMPLETE
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)


def test_others_than_the_first_write_where_nobody_reads(endless: TrainingOrder) -> None:
    assert ProcessRank(0, 2).own_output_dir(endless.output_dir) == endless.output_dir
    assert (
        ProcessRank(1, 2).own_output_dir(endless.output_dir) == endless.output_dir / ".ranks" / "1"
    )
