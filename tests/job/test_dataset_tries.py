"""Which failures refuse a dataset and which end the job; what each try gets, and what is left of one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainer import logs
from trainer.errors import DATASET_FAULTS, ErrorCode, JobError, ReportedDataError, TrainerError
from trainer.ipc import worker_messages as protocol
from trainer.ipc.worker_messages import Progress, TrainingOrder
from trainer.job import dataset_tries as module
from trainer.job.ciphertext import CiphertextDirectory
from trainer.job.dataset_tries import DatasetTries
from trainer.job.disclosure_budget import RELEASES
from trainer.job.end_record import EndRecord, PrivacySpent
from trainer.job.result_statements import JobOutcome
from trainer.job.termination import Termination
from trainer.job.training_follower import TrainingFollower
from trainer.job.workspace import Workspace
from trainer.models import Phase
from trainer.sealing.bundle import GrantDemands, PrivacyDemand
from trainer.sealing.pool import Pool

NOT_A_ROW = ReportedDataError(ErrorCode.DATASET_ROW_INVALID, "not a row", file="train.jsonl", row=1)
TRAINED: Mapping[str, Any] = {"steps": 2}
Ending = TrainerError | Mapping[str, Any]
DEMANDING = GrantDemands(privacy=PrivacyDemand(max_epsilon=1.0, max_delta=1e-5))


@dataclass
class Worker:
    """A worker that ends as the test says, after some steps."""

    number: int
    ending: Ending
    steps: int = 0
    orders: list[TrainingOrder] = field(default_factory=list)
    ended: bool = False

    def train(self, order: TrainingOrder, follower: TrainingFollower) -> Mapping[str, Any]:
        self.orders.append(order)
        for step in range(1, self.steps + 1):
            follower.take(Progress(step=step, total_steps=2))
        follower.finish()
        if isinstance(self.ending, TrainerError):
            raise self.ending
        return self.ending

    def interrupt(self) -> None: ...

    def end(self) -> None:
        self.ended = True


@dataclass
class HandOver:
    """Notes what is sealed, and of which try."""

    workspace: Workspace
    ciphertext: CiphertextDirectory
    said: list[tuple[str, object, int]]

    def seal(self, _bundle: object, outcome: JobOutcome) -> Any:
        return self._note("seal", outcome.failure.code if outcome.failure else None)

    def refuse(self, _bundle: object, outcome: JobOutcome) -> Any:
        assert outcome.failure is not None
        return self._note("refuse", outcome.failure.code)

    def give_up(self, report: Any) -> Any:
        return self._note("give up", report.error)

    def _note(self, what: str, code: object) -> Any:
        self.said.append((what, code, self.workspace.number))
        return SimpleNamespace(error=code, result_bytes=1)


@dataclass
class World:
    """A job with one ending for each try."""

    folder: Path
    endings: list[Ending]
    steps: int = 0
    tries: int = 3
    checkpoint: int | None = None
    require: GrantDemands | None = None
    earlier: EndRecord | None = None
    uploads: int = 100
    is_joint: bool = False
    begun: list[Worker] = field(default_factory=list)
    events: list[logs.PublicEvent] = field(default_factory=list)
    said: list[tuple[str, object, int]] = field(default_factory=list)
    received: list[Path] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    noted: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.begin_worker(1)
        processes = SimpleNamespace(
            worker=self.begun[0],
            sandbox={},
            begin_worker=self.begin_worker,
            front=SimpleNamespace(send=lambda _message: None, require_running=lambda: None),
        )
        ciphertext = CiphertextDirectory(self.folder, persistent=True)
        train = SimpleNamespace(save_total_limit=1, max_steps=2, save_steps=None)
        privacy = SimpleNamespace(differential=False)
        self.made = DatasetTries(
            processes=cast("Any", processes),
            reception=cast("Any", self),
            hand_over=cast(
                "Any", HandOver(Workspace(self.folder, tries=self.tries), ciphertext, self.said)
            ),
            spec=cast(
                "Any", SimpleNamespace(sha256=lambda: "ab" * 32, train=train, privacy=privacy)
            ),
            compose_sha256="cd" * 32,
            earlier=self.earlier,
            enter=lambda phase, **_: self.phases.append(phase),
            set_status=lambda _status: None,
            public=self.events.append,
            termination=Termination(),
        )

    def begin_worker(self, number: int) -> Any:
        ending = self.endings.pop(0) if self.endings else TRAINED
        self.begun.append(Worker(number, ending, self.steps))
        return self.begun[-1]

    def receive(self, into: Path) -> Any:
        if not self.uploads:
            raise JobError(ErrorCode.DATASET_TIMEOUT, "no dataset arrived")
        self.uploads -= 1
        self.received.append(into)
        grant = SimpleNamespace(
            secret="5a" * 32, allow=SimpleNamespace(private_progress=False), require=self.require
        )
        manifest = SimpleNamespace(sha256=lambda: "ef" * 32, split_key=lambda: bytes(32))
        if self.is_joint:
            member = SimpleNamespace(grant=grant, manifest=manifest, files={"a": self.folder})
            return Pool(cast("Any", (member, member)))
        return SimpleNamespace(grants=(grant,), manifest=manifest, files={"a": self.folder})

    def note_refusal(self, grant: object, _report: object, number: int | None) -> None:
        self.noted.append((grant, number))

    def run(self) -> Any:
        return self.made.train_on_one()

    @property
    def refusals(self) -> list[tuple[ErrorCode, int]]:
        return [
            (event.code, event.tries_left)
            for event in self.events
            if isinstance(event, logs.DatasetRefused)
        ]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., World]:
    def make(*endings: Ending, **options: Any) -> World:
        world = World(tmp_path, list(endings), **options)

        class Checkpoints:
            def __init__(self, *_: object) -> None:
                self.last, self.keys = world.checkpoint, SimpleNamespace(destroy=lambda: None)

            def resume(self, _into: Path) -> int | None:
                return self.last

            def own_bytes(self) -> int:
                return 0

        monkeypatch.setattr(module, "CheckpointStore", Checkpoints)
        monkeypatch.setattr(protocol, "TrainingOrder", SimpleNamespace)
        return world

    return make


def test_bad_datasets_are_refused_until_one_is_trained_on(job: Callable[..., World]) -> None:
    world = job(NOT_A_ROW, NOT_A_ROW)
    assert world.run().error is None
    assert world.said == [
        ("refuse", ErrorCode.DATASET_ROW_INVALID, 1),
        ("refuse", ErrorCode.DATASET_ROW_INVALID, 2),
        ("seal", None, 3),
    ]
    assert world.refusals == [
        (ErrorCode.DATASET_ROW_INVALID, 2),
        (ErrorCode.DATASET_ROW_INVALID, 1),
    ]
    assert len(world.noted) == 2


def test_each_try_has_a_worker_and_directories_of_its_own(job: Callable[..., World]) -> None:
    world = job(NOT_A_ROW, NOT_A_ROW)
    world.run()
    assert [worker.number for worker in world.begun] == [1, 2, 3]
    assert all(worker.ended and len(worker.orders) == 1 for worker in world.begun)
    assert len(set(world.received)) == 3
    outputs = [worker.orders[0].output_dir for worker in world.begun]
    assert len({*outputs, *world.received}) == 6


def test_the_last_try_ends_the_job(job: Callable[..., World]) -> None:
    world = job(NOT_A_ROW, NOT_A_ROW, NOT_A_ROW)
    assert world.run().error is ErrorCode.DATASET_ROW_INVALID
    assert [what for what, _, _ in world.said] == ["refuse", "refuse", "seal"]
    assert world.refusals[-1] == (ErrorCode.DATASET_ROW_INVALID, 0)
    assert len(world.begun) == 3


def test_the_time_that_is_over_after_a_refusal_ends_the_job_with_its_report(
    job: Callable[..., World],
) -> None:
    world = job(NOT_A_ROW, uploads=1)
    world.run()
    assert world.said[-1] == ("give up", ErrorCode.DATASET_ROW_INVALID, 2)


def test_the_time_that_is_over_without_a_dataset_is_an_error(job: Callable[..., World]) -> None:
    with pytest.raises(JobError) as caught:
        job(uploads=0).run()
    assert caught.value.code is ErrorCode.DATASET_TIMEOUT


@pytest.mark.parametrize("code", ErrorCode)
def test_only_faults_of_the_dataset_refuse_it(code: ErrorCode, job: Callable[..., World]) -> None:
    """What is the spec's, the base model's or the machine's fault would be the next dataset's as well."""
    world = job(JobError(code, "whatever"))
    world.run()
    assert (world.said[0][0] == "refuse") is (code in DATASET_FAULTS)
    assert {
        ErrorCode.OUT_OF_MEMORY,
        ErrorCode.TRAINING_DIVERGED,
        ErrorCode.WORKER_DIED,
    } & DATASET_FAULTS == set()


def test_a_failure_after_the_first_step_ends_the_job(job: Callable[..., World]) -> None:
    world = job(NOT_A_ROW, steps=1)
    world.run()
    assert world.said == [("seal", ErrorCode.DATASET_ROW_INVALID, 1)]
    assert world.refusals == []


def test_a_dataset_that_has_been_trained_on_before_a_restart_is_not_refused(
    job: Callable[..., World],
) -> None:
    world = job(NOT_A_ROW, checkpoint=5)
    world.run()
    assert world.said == [("seal", ErrorCode.DATASET_ROW_INVALID, 1)]


def test_a_grant_that_the_spec_does_not_satisfy_is_refused_before_a_worker_sees_a_row(
    job: Callable[..., World],
) -> None:
    world = job(require=DEMANDING, tries=2)
    world.run()
    assert [what for what, _, _ in world.said] == ["refuse", "seal"]
    assert all(worker.ended and not worker.orders for worker in world.begun)


def test_an_internal_error_ends_the_job(job: Callable[..., World]) -> None:
    world = job(cast("Any", RuntimeError("canary")))
    world.begun[0].train = lambda *_: (_ for _ in ()).throw(RuntimeError("canary"))  # type: ignore[method-assign]
    world.run()
    assert world.said == [("seal", ErrorCode.INTERNAL, 1)]


def test_what_a_refused_worker_published_is_taken_off_the_budget(job: Callable[..., World]) -> None:
    world = job(NOT_A_ROW, NOT_A_ROW)
    world.made._releases = 7
    world.run()
    assert world.made._releases <= 7 < RELEASES


def test_privacy_that_was_spent_counts_for_its_own_dataset_alone(job: Callable[..., World]) -> None:
    spent = PrivacySpent(runs=1, epsilon=1.0, delta=1e-6)
    record = SimpleNamespace(spent_on=lambda digest: spent if digest == "ef" * 32 else None)
    world = job(NOT_A_ROW, earlier=record)
    world.run()
    assert world.made._spent is None or world.made._spent.runs == 1


OF_THE_SECOND = ReportedDataError(
    ErrorCode.DATASET_OVERLONG, "too long", file="provider-02//a.jsonl", row=1
)
OF_NOBODY = ReportedDataError(ErrorCode.DATASET_NOT_TRAINABLE, "no row is held out")


def test_the_provider_of_a_bad_dataset_is_told_and_the_others_wait(
    job: Callable[..., World],
) -> None:
    world = job(OF_THE_SECOND, is_joint=True)
    assert world.run().error is None
    assert [what for what, _, _ in world.said] == ["refuse", "seal"]
    assert [cast("Any", noted)[1] for noted in world.noted] == [2]


def test_what_no_single_dataset_would_mend_ends_a_joint_job(job: Callable[..., World]) -> None:
    world = job(OF_NOBODY, is_joint=True)
    assert world.run().error is ErrorCode.DATASET_NOT_TRAINABLE
    assert [what for what, _, _ in world.said] == ["seal"]
