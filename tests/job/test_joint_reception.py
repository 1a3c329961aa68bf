"""The datasets of a joint job: which are admitted to the pool, and what a later try or start keeps of them."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainer import logs
from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, JobError
from trainer.exchange.withdrawal import MAX_WITHDRAWALS, Withdrawal, sign_withdrawal
from trainer.ipc.front_messages import RegrantReady, UploadReady
from trainer.job.ciphertext import CiphertextDirectory
from trainer.job.reception import Reception
from trainer.models import Phase
from trainer.provider_keys import ProviderKey
from trainer.sealing.age import (
    Identity,
    encrypting_writer,
    generate_identity,
    new_file_key,
    wrap_file_key,
)
from trainer.sealing.bundle import Grant, pack_bundle
from trainer.sealing.bundle_signature import sign_bundle
from trainer.sealing.joint_terms import JointTerms
from trainer.sealing.pool import Pool
from trainer.sealing.regrant import Regrant
from trainer.spec import ExchangeSection

SPEC = "ab" * 32
PROVIDERS = tuple(ProviderKey(letter * 32) for letter in (b"a", b"b", b"c"))
KEYS = tuple(key.public for key in PROVIDERS)
RECIPIENT = str(generate_identity(hybrid=False).recipient())
JOB, LATER, LAST = (generate_identity(hybrid=False) for _ in range(3))
"""Instance keys of three starts of the job."""
FILE_KEYS = {number: new_file_key() for number in (1, 2, 3)}


def grant_of(number: int, *, accepts: tuple[str, ...] | None = None, **changes: Any) -> Grant:
    """The grant of the provider with a number: it accepts the two others."""
    others = tuple(key for key in KEYS if key != KEYS[number - 1]) if accepts is None else accepts
    joint = JointTerms(accepts=others, own_recipients=(RECIPIENT,)) if others else None
    values = {
        "job_spec_sha256": SPEC,
        "recipients": (RECIPIENT,),
        "secret": f"{number:02x}" * 32,
        "joint": joint,
    } | changes
    return Grant(version=1, expires_at=int(time.time()) + 999, **values)


def sealed(
    number: int,
    folder: Path,
    *,
    grant: Grant | None = None,
    key: ProviderKey | None = None,
    content: bytes | None = None,
    to: Identity = JOB,
) -> bytes:
    """The sealed dataset of the provider with a number: `rows.jsonl` says whose it is."""
    (folder / "rows").write_bytes(f"{number}\n".encode() if content is None else content)
    signer, plain, target = key or PROVIDERS[number - 1], io.BytesIO(), io.BytesIO()
    pack_bundle(
        plain,
        grant or grant_of(number),
        {"rows.jsonl": folder / "rows"},
        lambda *digests: sign_bundle(signer, str(to.recipient()), *digests),
    )
    with encrypting_writer(target, [to.recipient()], file_key=FILE_KEYS[number]) as writer:
        writer.write(plain.getvalue())
    return target.getvalue()


@dataclass
class World:
    """A joint job of three providers: each wait brings the next upload."""

    folder: Path
    uploads: list[bytes | Regrant]
    shown: list[tuple[str | None, tuple[int, ...]]] = field(default_factory=list)
    withdrawn: list[tuple[int, ...]] = field(default_factory=list)
    requests: dict[int, list[str]] = field(default_factory=dict)
    """Withdrawals that arrive while so many uploads are still to come."""
    requests_while_opening: dict[int, list[str]] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    public: list[object] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    retained: list[tuple[int, ...]] = field(default_factory=list)
    now: float = 0.0
    lasts: bool = False
    identities: tuple[Identity, ...] = (JOB,)
    left_over: int | None = None

    def __post_init__(self) -> None:
        exchange = ExchangeSection(
            joint=True, providers=KEYS, dataset_timeout_seconds=100, max_upload_bytes=1 << 16
        )
        spec = SimpleNamespace(exchange=exchange, sha256=lambda: SPEC)
        keys = SimpleNamespace(
            identities=self.identities,
            upload_scope=lambda _spec: None,
            recipients=SimpleNamespace(instance=str(self.identities[0].recipient())),
        )
        (self.folder / "ciphertext").mkdir(exist_ok=True)
        self.ciphertext = CiphertextDirectory(self.folder / "ciphertext", persistent=self.lasts)
        self.reception = Reception(
            cast("Any", self), cast("Any", keys), cast("Any", spec), self.ciphertext, self.enter,
            self.public.append, left_over=self.left_over, clock=lambda: self.now,
        )  # fmt: skip

    def enter(
        self,
        phase: Phase,
        *,
        error: ErrorCode | None = None,
        result_bytes: int | None = None,
        received: tuple[int, ...] = (),
        withdrawn: tuple[int, ...] = (),
        retained: tuple[int, ...] = (),
    ) -> None:
        self.withdrawn.append(withdrawn)
        if phase is Phase.OPENING:
            self.late += self.requests_while_opening.pop(len(self.uploads), [])
        if phase in {Phase.AWAITING_DATASET, Phase.AWAITING_GRANT}:
            assert (phase is Phase.AWAITING_GRANT) == bool(retained)
            self.shown.append((error.value if error else None, received))
            self.retained.append(retained)

    def take_withdrawals(self) -> list[str]:
        taken, self.late = self.late, []
        return taken

    def wait_arrival(
        self, seconds: float, _scope: object, *, regrant: bool, on_withdrawal: Callable[[], None]
    ) -> object:
        if requests := self.requests.pop(len(self.uploads), None):
            self.late += requests
            on_withdrawal()
        if seconds <= 0 or not self.uploads:
            raise JobError(ErrorCode.DATASET_TIMEOUT, "no dataset arrived")
        if isinstance(arrived := self.uploads.pop(0), Regrant):
            assert regrant, "only where a dataset waits for its grant"
            (self.ciphertext.folder / "regrant.json").write_bytes(arrived.canonical())
            return RegrantReady()
        self.ciphertext.dataset.write_bytes(arrived)
        return UploadReady(size=1)

    def receive(self, number: int = 1) -> Pool:
        into = self.folder / f"try{number}"
        into.mkdir(exist_ok=True)
        pool = self.reception.receive(into)
        assert isinstance(pool, Pool)
        return pool


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., World]:
    return lambda *uploads, **options: World(tmp_path, list(uploads), **options)


def rows(pool: Pool) -> dict[str, str]:
    return {name: path.read_text().strip() for name, path in pool.files.items()}


IN_ORDER = {f"provider-0{number}//rows.jsonl": str(number) for number in (1, 2, 3)}


def test_the_pool_has_the_order_of_the_spec_whoever_comes_first(
    job: Callable[..., World], tmp_path: Path
) -> None:
    world = job(*(sealed(number, tmp_path) for number in (3, 1, 2)))
    pool = world.receive()
    assert list(rows(pool).items()) == list(IN_ORDER.items())
    assert world.shown == [(None, ()), (None, (3,)), (None, (1, 3))]
    assert [grant.secret[:2] for grant in pool.grants] == ["01", "02", "03"]


def test_one_that_comes_late_ends_the_wait(job: Callable[..., World], tmp_path: Path) -> None:
    world = job(sealed(1, tmp_path), sealed(2, tmp_path))
    with pytest.raises(JobError) as caught:
        world.receive()
    assert caught.value.code is ErrorCode.DATASET_TIMEOUT
    assert world.shown[-1] == (None, (1, 2))


def strange(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Uploads that must not get into the pool → the public code that refuses them."""
    single = grant_of(2, accepts=())
    return {
        "sham": (sealed(2, folder, key=ProviderKey(b"x" * 32)), "grant-signer-unknown"),
        "duplicate": (sealed(1, folder, content=b"another\n"), "dataset-duplicate"),
        "grant for one provider": (sealed(2, folder, grant=single), "grants-differ"),
        "accepts a stranger in place of the third": (
            sealed(2, folder, grant=grant_of(2, accepts=(KEYS[0], "ed25519:" + "00" * 32))),
            "grants-differ",
        ),
        "accepts itself in place of the third": (
            sealed(2, folder, grant=grant_of(2, accepts=KEYS[:2])),
            "grants-differ",
        ),
        "other recipients": (
            sealed(
                2,
                folder,
                grant=grant_of(2, recipients=(str(generate_identity(hybrid=False).recipient()),)),
            ),
            "grants-differ",
        ),
        "another job spec": (
            sealed(2, folder, grant=grant_of(2, job_spec_sha256="cd" * 32)),
            "grant-mismatch",
        ),
        "huge": (sealed(2, folder, content=bytes(1 << 17)), "bundle-invalid"),
        "no bundle": (b"", "sealed-header-invalid"),
    }


@pytest.mark.parametrize("name", [
    "sham", "duplicate", "grant for one provider", "accepts a stranger in place of the third",
    "accepts itself in place of the third", "other recipients", "another job spec", "huge", "no bundle",
])  # fmt: skip
def test_what_does_not_belong_into_the_pool_is_refused_and_the_others_stay(
    name: str, job: Callable[..., World], tmp_path: Path
) -> None:
    upload, code = strange(tmp_path)[name]
    world = job(sealed(1, tmp_path), upload, sealed(2, tmp_path), sealed(3, tmp_path))
    assert rows(world.receive()) == IN_ORDER
    assert world.shown[2] == (code, (1,))


def test_a_grant_for_a_joint_job_is_of_no_use_in_another(tmp_path: Path) -> None:
    """It would name an adapter for the others too, and the job would train on one dataset alone."""
    world = World(tmp_path, [sealed(1, tmp_path)])
    exchange = ExchangeSection(providers=KEYS)
    spec = SimpleNamespace(exchange=exchange, sha256=lambda: SPEC)
    world.reception = replace(world.reception, spec=cast("Any", spec))
    with pytest.raises(JobError):
        world.receive()
    assert world.shown[-1] == ("grants-differ", ())


@pytest.mark.parametrize("lasts", [True, False])
def test_a_refused_dataset_is_sent_anew_and_the_others_are_not(
    lasts: bool, job: Callable[..., World], tmp_path: Path
) -> None:
    first = [sealed(number, tmp_path) for number in (1, 2, 3)]
    mended = sealed(2, tmp_path, grant=grant_of(2, secret="ee" * 32), content=b"mended\n")
    world = job(*first, first[1], mended, lasts=lasts)
    pool = world.receive()
    report = cast("Any", SimpleNamespace(error=ErrorCode.DATASET_ROW_INVALID, result_bytes=7))
    world.reception.note_refusal(pool.grants[1], report, 2)
    again = world.receive(2)
    assert rows(again) == {**IN_ORDER, "provider-02//rows.jsonl": "mended"}
    announced = ("dataset-row-invalid", (1, 3))
    assert world.shown[3:] == [announced, announced], "sent again by somebody: no try of the job"


def test_a_report_is_announced_until_its_provider_has_sent_another(
    job: Callable[..., World], tmp_path: Path
) -> None:
    world = job(*(sealed(number, tmp_path) for number in (1, 2, 3)))
    pool = world.receive()
    for number in (1, 2):
        report = cast(
            "Any", SimpleNamespace(error=ErrorCode.DATASET_ROW_INVALID, result_bytes=number)
        )
        world.reception.note_refusal(pool.grants[number - 1], report, number)
    world.uploads = [
        sealed(number, tmp_path, grant=grant_of(number, secret="dd" * 32)) for number in (1, 2)
    ]
    assert rows(world.receive(2)) == IN_ORDER
    assert world.shown[3:] == [("dataset-row-invalid", (3,)), ("dataset-row-invalid", (1, 3))]


def test_a_later_start_finds_what_was_sealed_to_a_key_that_it_has(
    job: Callable[..., World], tmp_path: Path
) -> None:
    world = job(sealed(1, tmp_path), sealed(2, tmp_path), lasts=True)
    with pytest.raises(JobError):
        world.receive()
    later = job(sealed(3, tmp_path), lasts=True)
    assert rows(later.receive(2)) == IN_ORDER
    assert later.shown == [(None, (1, 2))]


def test_what_the_operator_puts_in_the_place_of_a_kept_dataset_is_not_used(
    job: Callable[..., World], tmp_path: Path
) -> None:
    world = job(*(sealed(number, tmp_path) for number in (1, 2, 3)))
    pool = world.receive()
    earlier = sealed(1, tmp_path, grant=grant_of(1, secret="ff" * 32), content=b"earlier\n")
    world.ciphertext.member(1).write_bytes(earlier)
    world.ciphertext.member(3).write_bytes(earlier)
    report = cast("Any", SimpleNamespace(error=ErrorCode.DATASET_ROW_INVALID, result_bytes=7))
    world.reception.note_refusal(pool.grants[1], report, 2)
    world.uploads = [
        sealed(number, tmp_path, grant=grant_of(number, secret="dd" * 32)) for number in (1, 2, 3)
    ]
    assert rows(world.receive(2)) == IN_ORDER
    assert world.shown[3][1] == ()


def withdrawal(grant: Grant, key: ProviderKey, spec: str = SPEC) -> str:
    return sign_withdrawal(
        Withdrawal(version=1, job_spec_sha256=spec, grant_sha256=grant.sha256()), key
    )


def test_a_provider_takes_its_dataset_back_and_sends_another(
    job: Callable[..., World], tmp_path: Path
) -> None:
    """While the job waits for the third. Its rows leave the workspace, its ciphertext the operator's disk."""
    mine = grant_of(1)
    other = sealed(1, tmp_path, grant=grant_of(1, secret="dd" * 32), content=b"another\n")
    uploads = [sealed(1, tmp_path, grant=mine), sealed(2, tmp_path), sealed(3, tmp_path), other]
    world = job(*uploads, requests={2: [withdrawal(mine, PROVIDERS[0])]})
    pool = world.receive()
    assert rows(pool) == {**IN_ORDER, "provider-01//rows.jsonl": "another"}
    assert [received for _error, received in world.shown] == [(), (1,), (1, 2), (2,), (2, 3)]
    assert (1,) in world.withdrawn
    assert [event for event in world.public if isinstance(event, logs.DatasetWithdrawn)] == [
        logs.DatasetWithdrawn(1)
    ]


def test_what_was_taken_back_is_not_admitted_again(
    job: Callable[..., World], tmp_path: Path
) -> None:
    """Whoever saw its ciphertext, such as the operator, sends it once more; or it was under way meanwhile."""
    mine = grant_of(1)
    bundle = sealed(1, tmp_path, grant=mine)
    rest = [sealed(2, tmp_path), sealed(3, tmp_path)]
    arrives: list[dict[str, Any]] = [
        {"requests": {3: [withdrawal(mine, PROVIDERS[0])]}},
        {"requests_while_opening": {2: [withdrawal(mine, PROVIDERS[0])]}},
    ]
    for number, when in enumerate(arrives):
        uploads = [bundle, bundle, *rest] if number == 0 else [bundle, *rest]
        world = job(*uploads, **when)
        with pytest.raises(JobError) as caught:
            world.receive(number)
        assert caught.value.code is ErrorCode.DATASET_TIMEOUT
        assert world.shown[-1][1] == (2, 3)
        assert world.withdrawn[-1] == (1,)
        assert not world.ciphertext.member(1).exists()
        assert not list(tmp_path.glob("try*/provider-01*"))


def test_nothing_is_trained_on_that_is_taken_back_while_the_last_dataset_is_opened(
    job: Callable[..., World], tmp_path: Path
) -> None:
    mine = grant_of(1)
    uploads = [sealed(1, tmp_path, grant=mine), sealed(2, tmp_path), sealed(3, tmp_path)]
    world = job(*uploads, requests_while_opening={0: [withdrawal(mine, PROVIDERS[0])]})
    with pytest.raises(JobError):
        world.receive()
    assert world.shown[-1][1] == (2, 3)


@pytest.mark.parametrize("attack", [
    "forged", "another spec's", "another grant's", "somebody else's", "no document", "no token",
])  # fmt: skip
def test_what_is_no_withdrawal_of_a_provider_changes_nothing(
    attack: str, job: Callable[..., World], tmp_path: Path
) -> None:
    mine = grant_of(1)
    good = withdrawal(mine, PROVIDERS[0])
    token = {
        "forged": withdrawal(mine, ProviderKey(b"x" * 32)),
        "another spec's": withdrawal(mine, PROVIDERS[0], "cd" * 32),
        "another grant's": withdrawal(grant_of(1, secret="ee" * 32), PROVIDERS[0]),
        "somebody else's": withdrawal(mine, PROVIDERS[1]),
        "no document": good.partition(".")[0][:-4] + "." + good.partition(".")[2],
        "no token": "",
    }[attack]
    uploads = [sealed(1, tmp_path, grant=mine), sealed(2, tmp_path), sealed(3, tmp_path)]
    world = job(*uploads, requests={2: [token]})
    assert rows(world.receive()) == IN_ORDER


def test_a_provider_that_takes_back_too_often_is_out(
    job: Callable[..., World], tmp_path: Path
) -> None:
    """A list without an end would be memory that a provider fills."""
    others = [grant_of(1, secret=f"{number:064x}") for number in range(MAX_WITHDRAWALS)]
    tokens = [withdrawal(grant, PROVIDERS[0]) for grant in others]
    world = job(sealed(1, tmp_path), requests={1: tokens})
    with pytest.raises(JobError):
        world.receive()
    assert world.shown[-1] == ("grant-withdrawn", ())


# a restart with another instance key


def manifest_of(number: int, folder: Path, grant: Grant) -> str:
    """Digest of the manifest of what `sealed` gives."""
    (folder / "rows").write_bytes(f"{number}\n".encode())
    return pack_bundle(io.BytesIO(), grant, {"rows.jsonl": folder / "rows"}).sha256()


class Grants:
    """The grants of all providers, each made once, with the datasets and re-grants under them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.grants = {number: grant_of(number) for number in (1, 2, 3)}

    def sealed(self, number: int, **options: Any) -> bytes:
        return sealed(number, self.folder, grant=self.grants[number], **options)

    def regrant(
        self,
        number: int,
        *,
        to: Identity = LATER,
        key: ProviderKey | None = None,
        expires_in: int = 999,
    ) -> Regrant:
        grant, recipient = self.grants[number], str(to.recipient())
        wrapped = wrap_file_key(FILE_KEYS[number], [to.recipient()])
        made = Regrant(
            version=1,
            header=wrapped.decode(),
            job_spec_sha256=SPEC,
            grant_sha256=grant.sha256(),
            manifest_sha256=manifest_of(number, self.folder, grant),
            recipient_sha256=sha256_hex(recipient.encode()),
            instance_sha256=sha256_hex(recipient.encode()),
            expires_at=int(time.time()) + expires_in,
        )
        return made.signed(key or PROVIDERS[number - 1]).tagged(grant.secret)


@pytest.fixture
def restarted(job: Callable[..., World], tmp_path: Path) -> Callable[..., tuple[World, Grants]]:
    """A second start, with other keys, of a job whose datasets were all in; each wait brings the next arrival."""

    def restart(*arrivals: Callable[[Grants], bytes | Regrant]) -> tuple[World, Grants]:
        grants = Grants(tmp_path)
        job(*(grants.sealed(number) for number in (1, 2, 3)), lasts=True).receive(9)
        found = [arrival(grants) for arrival in arrivals]
        return job(*found, lasts=True, identities=(LATER,)), grants

    return restart


def regrant(number: int, **options: Any) -> Callable[[Grants], Regrant]:
    return lambda grants: grants.regrant(number, **options)


def test_each_provider_grants_its_own_dataset_again_in_any_order(
    restarted: Callable[..., tuple[World, Grants]],
) -> None:
    world, grants = restarted(*(regrant(number) for number in (3, 1, 2)))
    pool = world.receive()
    assert list(rows(pool).items()) == list(IN_ORDER.items())
    assert pool.grants == tuple(grants.grants.values()), "the state key is that of the first start"
    assert world.shown == [(None, ()), (None, (3,)), (None, (1, 3))]
    assert world.retained == [(1, 2, 3), (1, 2), (2,)]
    assert [bundle.provider for bundle in pool.bundles] == list(KEYS), "who signed the re-grants"


def test_the_third_start_needs_the_grants_once_more(
    restarted: Callable[..., tuple[World, Grants]], job: Callable[..., World]
) -> None:
    world, grants = restarted(*(regrant(number) for number in (1, 2, 3)))
    world.receive()
    old = [grants.regrant(number) for number in (1, 2, 3)]
    new = [grants.regrant(number, to=LAST) for number in (1, 2, 3)]
    last = job(*old, *new, lasts=True, identities=(LAST,))
    assert rows(last.receive(3)) == IN_ORDER
    assert [error for error, _ in last.shown] == [None, *["regrant-invalid"] * 3, None, None]


FORGED = {
    "signed by another": (regrant(1, key=PROVIDERS[1]), "sealed-header-mac"),
    "signed by a stranger": (regrant(1, key=ProviderKey(b"x" * 32)), "regrant-invalid"),
    "for another start": (regrant(1, to=LAST), "regrant-invalid"),
    "expired": (regrant(1, expires_in=-1), "grant-expired"),
    "once more": (regrant(3), "regrant-invalid"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_re_grant_that_is_refused_costs_no_dataset(
    name: str, restarted: Callable[..., tuple[World, Grants]]
) -> None:
    forged, code = FORGED[name]
    world, _ = restarted(regrant(3), forged, regrant(1), regrant(2))
    assert rows(world.receive()) == IN_ORDER
    assert world.shown == [(None, ()), (None, (3,)), (code, (3,)), (None, (1, 3))]


def test_datasets_that_the_operator_exchanged_open_for_neither_provider(
    restarted: Callable[..., tuple[World, Grants]],
) -> None:
    world, _ = restarted(*(regrant(number) for number in (1, 2, 3)))
    first, second = (world.ciphertext.member(number) for number in (1, 2))
    texts = first.read_bytes(), second.read_bytes()
    first.write_bytes(texts[1])
    second.write_bytes(texts[0])
    with pytest.raises(JobError):
        world.receive()
    assert world.shown[1:] == [("sealed-header-mac", ())] * 2 + [(None, (3,))]


def test_a_kept_dataset_that_is_broken_is_sent_again(
    restarted: Callable[..., tuple[World, Grants]],
) -> None:
    world, _ = restarted(
        regrant(2), regrant(1), regrant(3), lambda grants: grants.sealed(2, to=LATER)
    )
    kept = world.ciphertext.member(2)
    kept.write_bytes(kept.read_bytes()[:-1])
    assert rows(world.receive()) == IN_ORDER
    assert world.retained == [(1, 2, 3), (1, 2, 3), (2, 3), (2,)]
    assert world.shown[1] == ("sealed-payload-invalid", ())


def test_another_dataset_of_a_provider_takes_the_place_of_the_kept_one(
    restarted: Callable[..., tuple[World, Grants]],
) -> None:
    world, _ = restarted(
        lambda grants: sealed(2, grants.folder, grant=grant_of(2, secret="ee" * 32), to=LATER),
        regrant(2), regrant(1), regrant(3),
    )  # fmt: skip
    pool = world.receive()
    assert pool.grants[1].secret == "ee" * 32
    assert world.shown[2] == ("regrant-invalid", (2,)), "the old one cannot come back"


def test_a_further_try_opens_again_what_was_granted_again(
    restarted: Callable[..., tuple[World, Grants]],
) -> None:
    """The headers of the kept files are for a key that is gone: the re-grants of this start count on."""
    world, grants = restarted(*(regrant(number) for number in (1, 2, 3)))
    pool = world.receive()
    report = cast("Any", SimpleNamespace(error=ErrorCode.DATASET_ROW_INVALID, result_bytes=7))
    world.reception.note_refusal(pool.grants[1], report, 2)
    mended = sealed(2, grants.folder, grant=grant_of(2, secret="ee" * 32), to=LATER)
    world.uploads = [mended]
    assert rows(world.receive(2)) == IN_ORDER
    assert world.shown[3:] == [("dataset-row-invalid", (1, 3))]


def test_an_upload_that_was_complete_when_the_job_ended_is_sent_again(
    job: Callable[..., World], tmp_path: Path
) -> None:
    """It never opened: nobody knows whose it is, and so who could grant it again."""
    grants = Grants(tmp_path)
    (tmp_path / "ciphertext").mkdir()
    (tmp_path / "ciphertext" / "dataset.age").write_bytes(grants.sealed(1))
    uploads = [grants.sealed(number, to=LATER) for number in (1, 2, 3)]
    world = job(*uploads, lasts=True, identities=(LATER,), left_over=1)
    assert rows(world.receive()) == IN_ORDER
    assert world.shown[0] == (None, ())
    assert world.retained[0] == ()


def test_a_dataset_that_is_taken_back_before_it_is_granted_again_goes_when_it_is(
    restarted: Callable[..., tuple[World, Grants]],
) -> None:
    """Nobody knows the grant of a dataset that waits: it is a later re-grant that shows which was taken back."""
    world, grants = restarted(*(regrant(number) for number in (1, 2, 3)))
    world.late = [withdrawal(grants.grants[1], PROVIDERS[0])]
    with pytest.raises(JobError) as caught:
        world.receive()
    assert caught.value.code is ErrorCode.DATASET_TIMEOUT
    assert world.shown[1] == ("grant-withdrawn", ())
    assert world.retained == [(1, 2, 3), (2, 3), (3,), ()]
    assert (1,) in world.withdrawn
    assert not world.ciphertext.member(1).exists()


def test_a_dataset_that_is_taken_back_after_it_was_granted_again_is_not_granted_once_more(
    restarted: Callable[..., tuple[World, Grants]],
) -> None:
    world, grants = restarted(regrant(1), regrant(2), regrant(3))
    world.requests = {2: [withdrawal(grants.grants[1], PROVIDERS[0])]}
    with pytest.raises(JobError):
        world.receive()
    assert not world.ciphertext.member(1).exists()
    world.uploads = [grants.sealed(1, to=LATER)]
    with pytest.raises(JobError):
        world.receive(2)
    assert world.shown[-1][0] == "grant-withdrawn"
