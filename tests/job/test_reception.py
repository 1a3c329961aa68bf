"""Which uploads end a wait for a dataset, and what those that do not cost the job."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainer import logs
from trainer.errors import ErrorCode, JobError, SealingError, TrainerError, UnavailableError
from trainer.ipc.front_messages import RegrantReady, UploadReady
from trainer.job import reception as module
from trainer.job.ciphertext import CiphertextDirectory
from trainer.job.reception import Reception
from trainer.models import Phase
from trainer.sealing.bundle import Grant, OpenedBundle
from trainer.spec import ExchangeSection

KEYS = cast(
    "Any",
    SimpleNamespace(
        identities=(),
        upload_scope=lambda _spec_sha256: "scope",
        recipients=SimpleNamespace(instance="age1"),
    ),
)
WAITS = {Phase.AWAITING_DATASET, Phase.AWAITING_GRANT}
Shown = tuple[Phase, str | None, int | None]


def bundle_of(name: str) -> OpenedBundle:
    grant = SimpleNamespace(sha256=lambda: name, joint=None)
    return cast("OpenedBundle", SimpleNamespace(grant=grant, grants=(grant,)))


def report(code: ErrorCode = ErrorCode.DATASET_INVALID, size: int = 7) -> Any:
    return SimpleNamespace(error=code, result_bytes=size)


@dataclass
class ReGranted:
    """A wait that brings a re-grant in place of an upload."""

    outcome: object
    is_authentic: bool = True


@dataclass
class World:
    """A job that waits for a dataset: each wait brings an upload that ends as the next of the outcomes says."""

    folder: Path
    outcomes: list[object]
    lasts: bool = True
    left_over: int | None = None
    spooled: bool = False
    opened: list[str] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    events: list[object] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.ciphertext = CiphertextDirectory(self.folder, self.lasts)
        if self.left_over is not None or self.spooled:
            self.ciphertext.dataset.write_text("before")
        spec = SimpleNamespace(
            exchange=ExchangeSection(dataset_timeout_seconds=100), sha256=lambda: "ab" * 32
        )
        self.reception = Reception(
            cast("Any", self), KEYS, cast("Any", spec), self.ciphertext, self.enter, self.events.append,
            left_over=self.left_over, clock=lambda: self.now,
            spooled=self.ciphertext.dataset_identity() if self.spooled else None,
        )  # fmt: skip

    def enter(
        self,
        phase: Phase,
        *,
        error: ErrorCode | None = None,
        result_bytes: int | None = None,
        received: Any = (),
        withdrawn: Any = (),
        retained: tuple[int, ...] = (),
    ) -> None:
        if phase in WAITS:
            self.shown.append((phase, error.value if error else None, result_bytes))

    def take_withdrawals(self) -> list[str]:
        return []

    def wait_arrival(
        self, seconds: float, scope: object, *, regrant: bool, on_withdrawal: object
    ) -> object:
        assert scope == "scope"
        self.waits.append(seconds)
        if seconds <= 0:
            raise JobError(ErrorCode.DATASET_TIMEOUT, "no dataset arrived")
        if self.outcomes and isinstance(self.outcomes[0], ReGranted):
            assert regrant, "only where a dataset waits for its grant"
            (self.folder / "regrant.json").write_bytes(b"a re-grant")
            return RegrantReady()
        if not (self.spooled and len(self.waits) == 1):
            assert not self.ciphertext.dataset.is_file(), "refused ciphertext does not stay"
            self.ciphertext.dataset.write_text(f"upload {len(self.waits)}")
        return UploadReady(size=1)

    def open(
        self,
        source: Path,
        *_: object,
        check_grant: Callable[[Grant], None],
        regrant: object,
        **__: object,
    ) -> object:
        outcome = self.outcomes.pop(0)
        self.opened.append(source.name)
        if isinstance(outcome, ReGranted):
            assert regrant == b"a re-grant", "read by the supervisor"
            if outcome.is_authentic:
                check_grant(cast("Any", OURS).grant)
            outcome = outcome.outcome
        if isinstance(outcome, TrainerError):
            raise outcome
        check_grant(cast("Any", outcome).grant)
        return outcome

    def receive(self) -> OpenedBundle:
        return cast("OpenedBundle", self.reception.receive(self.folder))


@pytest.fixture
def receiving(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., World]:
    def make(*outcomes: object, **options: Any) -> World:
        world = World(tmp_path, list(outcomes), **options)
        monkeypatch.setattr(module, "open_bundle", world.open)
        monkeypatch.setattr(module, "parse_regrant", lambda data: data)
        return world

    return make


OURS = bundle_of("ours")
STRANGER = SealingError(ErrorCode.NO_IDENTITY_MATCH, "for somebody else")


@pytest.mark.parametrize(
    "refusal",
    [STRANGER, UnavailableError(ErrorCode.STORAGE_FULL, "larger than the workspace")],
    ids=lambda error: error.code.value,
)
@pytest.mark.parametrize("lasts", [True, False])
def test_no_upload_of_a_stranger_ends_the_wait(
    refusal: TrainerError, lasts: bool, receiving: Callable[..., World]
) -> None:
    world = receiving(refusal, refusal, OURS, lasts=lasts)
    assert world.receive() is OURS
    assert [error for _, error, _ in world.shown] == [None, refusal.code.value, refusal.code.value]
    assert world.ciphertext.dataset.exists() == lasts, (
        "what opened stays where another start may find it"
    )


def test_what_strangers_send_does_not_fill_the_log_of_a_good_result(
    receiving: Callable[..., World],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And it reads as what it is: an upload that was refused, not a failure of the job."""
    caplog.set_level(logging.INFO, logs.private.name)  # as in a job
    refusal = SealingError(ErrorCode.NO_IDENTITY_MATCH, "for somebody else")
    refusal.__cause__ = ValueError("canary")
    text = StringIO()
    monkeypatch.setattr(logs.private, "handlers", [logs.limited_handler(text)])
    receiving(*[refusal] * 500, OURS).receive()
    lines = text.getvalue().splitlines()
    assert len(lines) == logs.MAX_REPEATS
    assert "Traceback" not in text.getvalue()
    assert "an upload was refused: for somebody else (no-identity-match)" in lines[0]
    assert "further" in lines[-1]


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_only_a_file_is_taken_for_an_upload_of_an_earlier_start(kind: str, tmp_path: Path) -> None:
    """By a link the operator would learn the size of a private file, from a public event."""
    ciphertext = CiphertextDirectory(tmp_path, persistent=True)
    (tmp_path / "private").write_bytes(bytes(4321))
    if kind == "link":
        ciphertext.dataset.symlink_to("private")
    elif kind == "pipe":
        os.mkfifo(ciphertext.dataset)
    else:
        ciphertext.dataset.mkdir()
    assert ciphertext.dataset_bytes() is None


def test_a_dataset_of_an_earlier_start_is_opened_once_and_first(
    receiving: Callable[..., World],
) -> None:
    world = receiving(OURS, bundle_of("next"), left_over=4321)
    assert world.receive() is OURS
    assert (world.shown, world.waits) == ([], [])
    world.reception.note_refusal(OURS.grant, report())
    world.receive()
    assert [event.bytes for event in world.events if isinstance(event, logs.DatasetReceived)] == [
        4321,
        1,
    ]


def test_a_dataset_for_an_earlier_start_waits_for_its_provider(
    receiving: Callable[..., World],
) -> None:
    world = receiving(STRANGER, OURS, bundle_of("next"), left_over=4321)
    world.receive()
    world.reception.note_refusal(OURS.grant, report())
    world.receive()
    assert world.shown == [
        (Phase.AWAITING_GRANT, None, None),
        (Phase.AWAITING_DATASET, "dataset-invalid", 7),
    ]


EXPIRED = SealingError(ErrorCode.GRANT_EXPIRED, "too late")
INVALID = SealingError(ErrorCode.REGRANT_INVALID, "not so")
BROKEN = SealingError(ErrorCode.PAYLOAD_INVALID, "cut short")


def contents(world: World) -> dict[str, str]:
    return {path.name: path.read_text() for path in world.folder.iterdir()}


@pytest.mark.parametrize("refusal", [STRANGER, EXPIRED], ids=lambda error: error.code.value)
@pytest.mark.parametrize("where", [{"left_over": 4321}, {"spooled": True}], ids=["http", "spool"])
def test_a_re_granted_dataset_is_opened_where_it_was_kept(
    refusal: TrainerError, where: dict[str, Any], receiving: Callable[..., World]
) -> None:
    world = receiving(refusal, ReGranted(OURS), **where)
    assert world.receive() is OURS
    assert world.opened == ["dataset.age", "retained-dataset.age"]
    assert contents(world) == {"dataset.age": "before"}, "the next start finds it, and no re-grant"
    assert world.shown[-1] == (Phase.AWAITING_GRANT, None, None)


def test_nothing_that_is_refused_costs_the_retained_dataset(
    receiving: Callable[..., World],
) -> None:
    """Neither uploads of strangers nor re-grants that anybody can send, authentic or not."""
    forged = [ReGranted(error, is_authentic=False) for error in (STRANGER, BROKEN, INVALID)]
    world = receiving(
        STRANGER, STRANGER, *forged, ReGranted(INVALID), ReGranted(OURS), left_over=4321
    )
    assert world.receive() is OURS
    assert contents(world) == {"dataset.age": "before"}
    assert {phase for phase, _, _ in world.shown} == {Phase.AWAITING_GRANT}
    assert [error for _, error, _ in world.shown] == [
        None, "no-identity-match", "no-identity-match", "sealed-payload-invalid", "regrant-invalid",
        "regrant-invalid",
    ]  # fmt: skip


def test_a_retained_dataset_that_is_broken_is_sent_again(receiving: Callable[..., World]) -> None:
    world = receiving(STRANGER, ReGranted(BROKEN), OURS, left_over=4321)
    assert world.receive() is OURS
    assert world.shown == [
        (Phase.AWAITING_GRANT, None, None),
        (Phase.AWAITING_DATASET, "sealed-payload-invalid", None),
    ]
    assert contents(world) == {"dataset.age": "upload 2"}


def test_another_dataset_ends_the_wait_for_a_grant(receiving: Callable[..., World]) -> None:
    world = receiving(STRANGER, OURS, left_over=4321)
    assert world.receive() is OURS
    assert contents(world) == {"dataset.age": "upload 1"}, "what was kept is gone"


def test_a_dataset_that_was_kept_is_found_by_the_start_after_the_next(tmp_path: Path) -> None:
    ciphertext = CiphertextDirectory(tmp_path, persistent=True)
    ciphertext.dataset.write_text("before")
    ciphertext.retain_dataset()
    assert ciphertext.dataset_bytes() is None
    ciphertext.restore_dataset()
    assert ciphertext.dataset_bytes() == len("before")
    ciphertext.retain_dataset()
    ciphertext.dataset.write_text("newer")
    ciphertext.restore_dataset()
    assert ciphertext.dataset.read_text() == "newer"
    ciphertext.remove_inputs()
    assert list(tmp_path.iterdir()) == []


# datasets that opened, and were refused


def test_the_wait_after_a_refusal_announces_it_and_its_ciphertext_is_gone(
    receiving: Callable[..., World],
) -> None:
    """A second start must not find it: it would refuse it again."""
    world = receiving(OURS, bundle_of("mended"))
    world.receive()
    assert world.ciphertext.dataset.exists()
    world.reception.note_refusal(OURS.grant, report())
    assert not world.ciphertext.dataset.exists()
    world.receive()
    assert world.shown == [
        (Phase.AWAITING_DATASET, None, None),
        (Phase.AWAITING_DATASET, "dataset-invalid", 7),
    ]


def test_no_refusal_prolongs_the_wait(receiving: Callable[..., World]) -> None:
    world = receiving(OURS, bundle_of("second"), bundle_of("third"))
    for _ in range(2):
        bundle = world.receive()
        world.reception.note_refusal(bundle.grants[0], report())
        world.now += 60
    with pytest.raises(JobError) as caught:
        world.receive()
    assert caught.value.code is ErrorCode.DATASET_TIMEOUT
    assert world.waits == [100, 40, -20]


def test_a_refused_dataset_that_somebody_sends_again_is_no_try(
    receiving: Callable[..., World],
) -> None:
    """The operator has its ciphertext, and could use up the tries of an honest provider with it."""
    mended = bundle_of("mended")
    world = receiving(OURS, OURS, OURS, mended)
    world.reception.note_refusal(world.receive().grants[0], report())
    assert world.receive() is mended
    announced = (Phase.AWAITING_DATASET, "dataset-invalid", 7)
    assert world.shown == [(Phase.AWAITING_DATASET, None, None), announced, announced, announced]


def test_a_report_that_was_replaced_is_not_announced_again(receiving: Callable[..., World]) -> None:
    other = bundle_of("other")
    world = receiving(OURS, other, OURS, other, bundle_of("mended"))
    world.reception.note_refusal(world.receive().grants[0], report())
    world.reception.note_refusal(world.receive().grants[0], report(ErrorCode.DATASET_OVERLONG, 9))
    world.receive()
    assert world.shown[2:] == [
        (Phase.AWAITING_DATASET, "dataset-overlong", 9),
        (Phase.AWAITING_DATASET, "dataset-invalid", None),
        (Phase.AWAITING_DATASET, "dataset-overlong", 9),
    ]


def test_a_strangers_upload_after_a_refusal_is_not_told_of_the_report(
    receiving: Callable[..., World],
) -> None:
    world = receiving(OURS, STRANGER, bundle_of("mended"))
    world.reception.note_refusal(world.receive().grants[0], report())
    world.receive()
    assert world.shown[2:] == [(Phase.AWAITING_DATASET, "no-identity-match", None)]
