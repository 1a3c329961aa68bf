"""A worker that was taken over says as much as it can: what of it becomes public, and how much that is.

The worker is played by a thread that writes to the supervisor's real channel; what handles its messages is the
supervisor's own. Time is counted by the test: each message takes a millisecond.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainer import logs
from trainer.errors import ErrorCode, JobError
from trainer.ipc import worker_messages as protocol
from trainer.ipc.front_messages import PrivateEvent, StatusUpdate
from trainer.ipc.worker_messages import Metrics, OutputSize, Preparing, Progress, Saved
from trainer.job import disclosure_budget as budget
from trainer.job.checkpoints import CheckpointStore
from trainer.job.disclosures import TrainingDisclosures
from trainer.job.private_events import EVENT_BYTES
from trainer.job.training_follower import TrainingFollower
from trainer.job.worker_process import WorkerProcess
from trainer.models import Activity
from trainer.sealing.age import decrypt, generate_identity
from trainer.sealing.bundle import Grant, GrantPermissions

MESSAGE_SECONDS = 0.001


class Clock:
    """Monotonic seconds that go on with each message, or to the moment that the supervisor waits for."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Checkpoints:
    """Stands where the store of checkpoints does; notes what is sealed, and when."""

    def __init__(self, clock: Clock, last: int | None = None) -> None:
        self.clock, self.last = clock, last
        self.sealed: list[tuple[float, int]] = []
        self.dropped: list[int] = []

    def take(self, step: int, _output: Path) -> None:
        self.sealed.append((self.clock.now - 1000.0, step))

    def drop(self, step: int, _output: Path) -> None:
        self.dropped.append(step)


class Operator:
    """Sees everything that leaves: events and messages to the front, with their times."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.progress: list[tuple[float, tuple[int, int, int | None]]] = []
        self.preparation: list[tuple[float, tuple[Activity, int | None]]] = []
        self.private: list[tuple[float, str]] = []

    def send(self, message: object) -> None:
        if isinstance(message, PrivateEvent):
            self.private.append((self.clock.now - 1000.0, message.sealed))
        else:
            assert isinstance(message, StatusUpdate)

    def require_running(self) -> None: ...

    def publish(self, event: logs.PublicEvent) -> None:
        if isinstance(event, logs.PreparationProgress):
            self.preparation.append((self.clock.now - 1000.0, (event.activity, event.percent)))
            return
        assert isinstance(event, logs.TrainingProgress)
        values = (event.step, event.total_steps, event.eta_seconds)
        self.progress.append((self.clock.now - 1000.0, values))


class Played:
    """The supervisor's side of one worker that is played."""

    def __init__(
        self,
        *,
        max_steps: int = -1,
        save_steps: int | None = None,
        resumed: int | None = None,
        private: bool = True,
    ) -> None:
        self.clock = Clock()
        self.operator = Operator(self.clock)
        self.checkpoints = Checkpoints(self.clock, resumed)
        self.identity = generate_identity(hybrid=False)
        self.is_terminating = False
        grant = Grant(
            version=1,
            job_spec_sha256="ab" * 32,
            recipients=(str(self.identity.recipient()),),
            expires_at=2000000000,
            secret="cd" * 32,
            allow=GrantPermissions(private_progress=private),
        )
        spec = SimpleNamespace(train=SimpleNamespace(max_steps=max_steps, save_steps=save_steps))
        disclosures = TrainingDisclosures(
            front=cast("Any", self.operator),
            spec=cast("Any", spec),
            grants=(grant,),
            folder=Path("/"),
            replaceable_bytes=lambda: 0,
            set_status=lambda _status: None,
            public=self.operator.publish,
        )
        self.follower = TrainingFollower(
            cast("Any", spec),
            Path("/"),
            cast("CheckpointStore", self.checkpoints),
            disclosures,
            lambda: self.is_terminating,
            clock=self.clock,
        )

    def hear(
        self, messages: Iterable[protocol.Message], *, seconds_each: float = MESSAGE_SECONDS
    ) -> None:
        """Has the supervisor's own channel and loop hear a worker; the last message is `Finished`."""
        reading, writing = os.pipe()
        lines = b"".join(
            map(protocol.FROM_WORKER.encode, (*messages, protocol.Finished(summary={})))
        )

        def speak() -> None:
            with suppress(BrokenPipeError), os.fdopen(writing, "wb") as pipe:
                pipe.write(lines)

        worker = WorkerProcess.__new__(WorkerProcess)
        worker._send = lambda instruction: None  # type: ignore[method-assign]
        worker._channel = protocol.to_worker_channel(reading, -1)
        receive = worker._channel.receive

        def receive_later(*, timeout: float | None) -> protocol.Message | None:
            self.clock.now += seconds_each
            return receive(timeout=None)

        worker._channel.receive = receive_later  # type: ignore[method-assign, assignment]
        thread = threading.Thread(target=speak)
        thread.start()
        try:
            worker.train(cast("Any", None), self.follower)
        finally:
            worker._channel.close()
            thread.join()


def on_the_grid(times: Iterable[float]) -> bool:
    """Whether everything happened at the first message after a whole second."""
    return all(seconds % budget.TICK_SECONDS < 2 * MESSAGE_SECONDS for seconds in times)


def test_a_worker_that_floods_says_ten_bits_a_second_by_its_progress() -> None:
    """Each message could hold three free numbers of 53 bits: 631 kB/s were measured through such a channel."""
    played, total = Played(), 100_000
    played.hear(Progress(step=step, total_steps=total) for step in range(1, 5_001))
    released = played.operator.progress
    assert len(released) == 5, "5,000 messages in five seconds"
    assert on_the_grid(seconds for seconds, _ in released)
    unit = total // budget.PROGRESS_VALUES
    assert {step % unit for _, (step, _, _) in released} == {0}
    assert {total_steps for _, (_, total_steps, _) in released} == {total}


def test_what_comes_before_the_first_step_is_public_in_twentieths_at_the_same_times() -> None:
    played = Played()
    before: list[protocol.Message] = [
        Preparing(activity=Activity.TOKENIZING, percent=n // 50) for n in range(5_001)
    ]
    before += [
        Preparing(activity=activity, percent=0)
        for activity in (Activity.LOADING, Activity.EVALUATING)
    ]
    played.hear([*before, *(Progress(step=step, total_steps=9000) for step in range(1, 3_001))])
    released = played.operator.preparation
    assert on_the_grid(seconds for seconds, _ in (*released, *played.operator.progress))
    percents = [percent for _, (activity, percent) in released if activity is Activity.TOKENIZING]
    assert len(percents) == len(set(percents)) == 5, "5,000 messages in five seconds"
    assert {*percents} <= {*range(0, 100, 5)}
    assert len(released) + len(played.operator.progress) == 8


def test_a_worker_that_prepares_after_its_first_step_is_ended() -> None:
    with pytest.raises(JobError) as caught:
        Played().hear(
            [Progress(step=1, total_steps=9), Preparing(activity=Activity.EVALUATING, percent=0)]
        )
    assert caught.value.code is ErrorCode.WORKER_DIED


def test_the_time_left_says_nothing_that_step_and_time_do_not() -> None:
    published: dict[tuple[object, ...], set[int | None]] = {}
    for seed in range(6):
        played, chance = Played(max_steps=900, private=False), random.Random(seed)
        delays = (chance.choice((0.001, 0.4, 0.9)) for _ in range(900))
        for step, delay in enumerate(delays, 1):
            played.clock.now += delay
            played.follower.release()
            played.follower.take(Progress(step=step, total_steps=900))
        history: tuple[object, ...] = ()
        for seconds, (step, _, eta) in played.operator.progress:
            history = (*history, math.floor(seconds), step)
            published.setdefault(history, set()).add(eta)
    assert all(len(values) == 1 for values in published.values())


@pytest.mark.parametrize(
    "messages",
    [
        [Progress(step=2, total_steps=9)],
        [Progress(step=1, total_steps=9), Progress(step=1, total_steps=9)],
        [Progress(step=1, total_steps=9), Progress(step=3, total_steps=9)],
        [Progress(step=1, total_steps=9), Progress(step=2, total_steps=8)],
        [Progress(step=1, total_steps=1), Progress(step=2, total_steps=1)],
        [Saved(step=1)],
        [Progress(step=1, total_steps=9), Saved(step=2)],
        [Progress(step=1, total_steps=9), Saved(step=1), Saved(step=1)],
        [OutputSize(trained_parameters=1, copied_bytes=0)] * 2,
    ],
    ids=[
        "skips", "repeats", "jumps", "another total", "beyond the last", "saves nothing", "saves ahead",
        "saves twice", "two sizes",
    ],
)  # fmt: skip
def test_a_worker_that_chooses_its_numbers_is_ended(
    messages: list[protocol.Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingDisclosures, "require_room", lambda _self, _size: None)
    with pytest.raises(JobError) as caught:
        Played(save_steps=1).hear(messages)
    assert caught.value.code is ErrorCode.WORKER_DIED


@pytest.mark.parametrize(("named", "resumed", "first"), [(5, None, (1, 5)), (-1, 3, (4, 7))])
def test_the_first_step_follows_from_the_spec_and_the_checkpoint(
    named: int, resumed: int | None, first: tuple[int, int]
) -> None:
    step, total = first
    for wrong in (
        ((step + 1, total), (step, total + 1)) if named > 0 else ((step + 1, total), (1, total))
    ):
        with pytest.raises(JobError):
            Played(max_steps=named, resumed=resumed).hear(
                [Progress(step=wrong[0], total_steps=wrong[1])]
            )
    played = Played(max_steps=named, resumed=resumed)
    played.hear([Progress(step=step, total_steps=total)])
    assert played.operator.progress[-1][1] == (step, total, None)


def saving(steps: int, total: int) -> Iterator[protocol.Message]:
    for step in range(1, steps + 1):
        yield Progress(step=step, total_steps=total)
        yield Saved(step=step)


def test_a_worker_that_saves_all_the_time_has_one_checkpoint_between_two_releases_sealed() -> None:
    played = Played(save_steps=1)
    played.hear(saving(2000, 1000_000))
    times = [seconds for seconds, _ in played.checkpoints.sealed]
    assert on_the_grid(times[:-1])
    assert len(times) == 4, "4,000 messages in four seconds"
    assert len(played.checkpoints.dropped) + len(times) == 2000, "and nothing of the others stays"
    assert Counter(math.floor(seconds) for seconds in times).most_common(1)[0][1] <= 2


def test_checkpoints_at_other_steps_are_two_in_one_start() -> None:
    """After the last step, and after SIGTERM: neither can wait for a release."""
    played = Played(save_steps=1000)
    played.hear(saving(500, 1000_000))
    assert [step for _, step in played.checkpoints.sealed] == [1, 2]
    last = Played(save_steps=1, max_steps=3)
    last.hear(saving(3, 3))
    assert [step for _, step in last.checkpoints.sealed] == [3], (
        "the last one replaces those that wait"
    )
    ended = Played(save_steps=1, max_steps=9)
    ended.is_terminating = True
    ended.hear(saving(1, 9))
    assert [step for _, step in ended.checkpoints.sealed] == [1]


def events_of(
    worker: Callable[[int], list[protocol.TrainingMessage]], seconds: int = 200
) -> Played:
    """What becomes of a worker that says `worker(second)` in each second."""
    played = Played(max_steps=seconds)
    for second in range(1, seconds):
        for message in worker(second):
            played.follower.take(message)
        played.clock.now = 1000.0 + second
        played.follower.release()
    played.follower.finish()
    return played


def metrics(step: int, names: int = 2) -> Metrics:
    return Metrics(step=step, values={f"metric_{name}": step / 7 for name in range(names)})


def test_number_size_and_time_of_private_events_do_not_depend_on_the_worker() -> None:
    workers: list[Callable[[int], list[protocol.TrainingMessage]]] = [
        lambda _second: [],
        lambda second: [metrics(second)] * (second % 3),
        lambda second: [metrics(number, 60) for number in range(second % 90)],
    ]
    seen = [
        [(at, len(sealed)) for at, sealed in events_of(worker).operator.private]
        for worker in workers
    ]
    assert seen[0] == seen[1] == seen[2]
    times = [at for at, _ in seen[0]]
    assert times == [*range(1, 65), *range(66, 193, 2), 196, 199], (
        "every second, then every other one, and the end"
    )


def test_an_event_has_the_latest_metrics_that_fit() -> None:
    played = events_of(
        lambda second: [metrics(second * 100 + number) for number in range(99)], seconds=3
    )
    for (_, sealed), second in zip(played.operator.private, (1, 2), strict=False):
        opened = io.BytesIO()
        decrypt(io.BytesIO(base64.b64decode(sealed)), opened, [played.identity])
        assert len(opened.getvalue()) == EVENT_BYTES
        steps = [entry["step"] for entry in json.loads(opened.getvalue())]
        assert len(steps) > 40
        assert steps == list(range(second * 100 + 99 - len(steps), second * 100 + 99))
