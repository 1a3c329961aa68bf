"""Re-grants: what opens a retained dataset in a start of the job that was verified again, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from trainer.attestation.checks import Check, CheckState
from trainer.attestation.evidence import DatasetClaims, DerivedKeys, Recipients
from trainer.attestation.result.attestation_result import APPRAISER, AttestationResult
from trainer.errors import ErrorCode, SealingError, TrainerError
from trainer.models import MAX_REGRANT_BYTES
from trainer.provider_keys import ProviderKey
from trainer.sealing.age import (
    Identity,
    decrypt_file,
    generate_identity,
    new_file_key,
    rewrap_header,
    wrap_file_key,
)
from trainer.sealing.bundle import BundleLimits, Grant, Manifest, OpenedBundle
from trainer.sealing.regrant import Regrant, make_regrant, parse_regrant
from trainer.sealing.seal import open_bundle, seal

NOW = 1_800_000_000
SPEC = "5a" * 32
PROVIDER, OTHER = ProviderKey(b"\x01" * 32), ProviderKey(b"\x02" * 32)


class Start:
    """A start of the job: the derived identity is that of every start, the instance identity is new."""

    def __init__(self, derived: Identity) -> None:
        self.derived, self.instance = derived, generate_identity(hybrid=False)

    def verdict(
        self, *, to_instance: bool = True, spec: str = SPEC, state: CheckState = CheckState.AFFIRMED,
        fresh: bool = True, expires_at: int = NOW + 3600,
    ) -> AttestationResult:  # fmt: skip
        recipients = Recipients(
            derived=str(self.derived.recipient()), instance=str(self.instance.recipient())
        )
        claims = DatasetClaims(
            version=1, purpose="dataset", nonce="00" * 32, job_spec_sha256=spec, recipients=recipients,
            derived_keys=DerivedKeys(recipient="02" * 33, possession="02" * 33), receipt_key="30" * 91,
            tls_key=None, gpu_evidence_sha256=None, sandbox={}, software={}, issued_at=NOW - 60,
            expires_at=NOW + 3600,
        )  # fmt: skip
        return AttestationResult(
            checks=(Check(number=1, code="quote-signature", title="the quote", state=state),), claims=claims,
            recipient=recipients.instance if to_instance else recipients.derived, td=None,
            compose_sha256="00" * 32, policy_sha256="00" * 32, appraised_at=NOW - 30, expires_at=expires_at,
            nonce="00" * 32, peer_spki_sha256=None, development_root=False, cautions=(), fresh=fresh,
            appraiser=APPRAISER,
        )  # fmt: skip


class Dataset:
    """A dataset that was sealed to one start, and what its provider kept of it."""

    def __init__(
        self, folder: Path, start: Start, *, content: bytes = b"{}\n" * 70_000, **options: Any
    ) -> None:
        self.provider = generate_identity(hybrid=False)
        self.sealed, rows = folder / "dataset.age", folder / "rows"
        rows.write_bytes(content)
        secret = options.pop("secret", "07" * 32)
        self.grant = Grant(
            version=1, job_spec_sha256=SPEC, recipients=(str(self.provider.recipient()),), expires_at=NOW + 1,
            secret=secret,
        )  # fmt: skip
        file_key = new_file_key()
        self.header = wrap_file_key(file_key, [self.provider.recipient()])
        self.manifest: Manifest = seal(
            {"rows": rows}, start.verdict(**options), self.grant, self.sealed, now=NOW, key=PROVIDER,
            file_key=file_key,
        )  # fmt: skip

    def regrant(
        self, to: AttestationResult, *, key: ProviderKey | None = PROVIDER, **changes: Any
    ) -> Regrant:
        made = make_regrant(
            self.header, [self.provider], self.grant, self.manifest.sha256(), to, now=NOW,
            expires_at=NOW + 100, key=key,
        )  # fmt: skip
        return made.model_copy(update=changes)

    def tagged(self, regrant: Regrant) -> Regrant:
        """The re-grant with a good tag, as one makes it who has the secret of the grant."""
        return regrant.tagged(self.grant.secret)


@pytest.fixture
def derived() -> Identity:
    return generate_identity(hybrid=False)


@pytest.fixture
def world(tmp_path: Path, derived: Identity) -> tuple[Dataset, Start]:
    """A dataset of an earlier start, and the start that kept it."""
    return Dataset(tmp_path, Start(derived)), Start(derived)


@pytest.fixture
def open_in(tmp_path: Path) -> Callable[..., OpenedBundle]:
    workspace = tmp_path / "workspace"
    workspace.mkdir()

    def open_it(
        start: Start,
        sealed: Path,
        regrant: Regrant | None,
        *,
        now: int = NOW,
        providers: tuple[str, ...] = (),
    ) -> OpenedBundle:
        return open_bundle(
            sealed, [start.derived, start.instance], SPEC, workspace, now=now, limits=BundleLimits(),
            regrant=regrant, instance=str(start.instance.recipient()), providers=providers,
        )  # fmt: skip

    return open_it


def refusal(action: Callable[[], object]) -> ErrorCode:
    with pytest.raises(SealingError) as caught:
        action()
    return caught.value.code


Open = Callable[..., OpenedBundle]
World = tuple[Dataset, Start]


def test_a_re_grant_opens_what_an_earlier_start_was_sent(world: World, open_in: Open) -> None:
    dataset, start = world
    assert refusal(lambda: open_in(start, dataset.sealed, None)) is ErrorCode.NO_IDENTITY_MATCH
    regrant = parse_regrant(dataset.regrant(start.verdict()).canonical())
    opened = open_in(start, dataset.sealed, regrant, providers=(PROVIDER.public,))
    assert opened.grant == dataset.grant
    assert opened.files["rows"].read_bytes() == b"{}\n" * 70_000


def test_an_expired_grant_of_a_key_that_stays_is_renewed(
    tmp_path: Path, derived: Identity, open_in: Open
) -> None:
    dataset, start = Dataset(tmp_path, Start(derived), to_instance=False), Start(derived)
    late = NOW + 50
    assert (
        refusal(lambda: open_in(start, dataset.sealed, None, now=late)) is ErrorCode.GRANT_EXPIRED
    )
    regrant = dataset.regrant(start.verdict(to_instance=False))
    assert open_in(start, dataset.sealed, regrant, now=late).grant == dataset.grant
    assert (
        refusal(lambda: open_in(start, dataset.sealed, regrant, now=NOW + 100))
        is ErrorCode.GRANT_EXPIRED
    )


@pytest.mark.parametrize("to_instance", [True, False])
def test_a_re_grant_is_good_for_one_start(
    world: World, to_instance: bool, derived: Identity, open_in: Open
) -> None:
    """Also where the recipient is derived, and so the same in the next start: the header would open there."""
    dataset, start = world
    old = dataset.regrant(start.verdict(to_instance=to_instance))
    after = Start(derived)
    assert refusal(lambda: open_in(after, dataset.sealed, old)) is ErrorCode.REGRANT_INVALID
    new = dataset.regrant(after.verdict(to_instance=to_instance))
    assert open_in(after, dataset.sealed, new).grant == dataset.grant, "the second restart"


def test_every_field_matters(world: World, open_in: Open) -> None:
    dataset, start = world
    elsewhere = generate_identity(hybrid=False)
    good = dataset.regrant(start.verdict())
    other_header = rewrap_header(
        dataset.header, [dataset.provider], [start.instance.recipient()]
    ).decode()
    changes: dict[str, dict[str, object]] = {
        "header": {"header": other_header},
        "recipient": {
            "header": rewrap_header(
                dataset.header, [dataset.provider], [elsewhere.recipient()]
            ).decode()
        },
        "another spec": {"job_spec_sha256": "00" * 32},
        "another grant": {"grant_sha256": "00" * 32},
        "another manifest": {"manifest_sha256": "00" * 32},
        "no recipient of the job": {"recipient_sha256": "00" * 32},
        "another start": {"instance_sha256": "00" * 32},
        "a later end": {"expires_at": NOW + 200},
        "an end that is over": {"expires_at": NOW},
        "no signature": {"signature": None},
        "tag": {"tag": "00" * 32},
    }
    covered = {name for change in changes.values() for name in change} | {"version"}
    assert covered == set(Regrant.model_fields)
    for name, change in changes.items():
        code = refusal(partial(open_in, start, dataset.sealed, good.model_copy(update=change)))
        assert code in {
            ErrorCode.REGRANT_INVALID, ErrorCode.GRANT_MISMATCH, ErrorCode.GRANT_EXPIRED,
            ErrorCode.NO_IDENTITY_MATCH,
        }, name  # fmt: skip


@pytest.mark.parametrize(
    "field", ["grant_sha256", "manifest_sha256", "instance_sha256", "recipient_sha256"]
)
def test_who_has_the_secret_cannot_grant_other_data_or_another_start(
    field: str, world: World, open_in: Open
) -> None:
    dataset, start = world
    forged = dataset.tagged(dataset.regrant(start.verdict(), key=None, **{field: "00" * 32}))
    assert refusal(lambda: open_in(start, dataset.sealed, forged)) is ErrorCode.REGRANT_INVALID


def test_a_re_grant_needs_the_signature_of_a_listed_provider(world: World, open_in: Open) -> None:
    dataset, start = world
    listed = (PROVIDER.public,)
    signed = dataset.regrant(start.verdict())
    codes = {
        ErrorCode.GRANT_UNSIGNED: dataset.regrant(start.verdict(), key=None),
        ErrorCode.GRANT_SIGNER_UNKNOWN: dataset.regrant(start.verdict(), key=OTHER),
        ErrorCode.GRANT_SIGNATURE_INVALID: dataset.tagged(
            signed.model_copy(update={"expires_at": NOW + 200})
        ),
    }
    for code, regrant in codes.items():
        assert refusal(partial(open_in, start, dataset.sealed, regrant, providers=listed)) is code


def test_datasets_cannot_be_swapped(
    world: World, tmp_path: Path, derived: Identity, open_in: Open
) -> None:
    """Neither with another one of the same secret, nor piece by piece: the file key is that of one file."""
    dataset, start = world
    (tmp_path / "second").mkdir()
    second = Dataset(tmp_path / "second", Start(derived), content=b"[]\n" * 70_000)
    regrant = dataset.regrant(start.verdict())
    assert refusal(lambda: open_in(start, second.sealed, regrant)) is ErrorCode.HEADER_MAC
    ours, theirs = dataset.sealed.read_bytes(), second.sealed.read_bytes()
    mixed = tmp_path / "mixed.age"
    mixed.write_bytes(ours[:10_000] + theirs[10_000:])
    assert refusal(lambda: open_in(start, mixed, regrant)) is ErrorCode.PAYLOAD_INVALID
    mixed.write_bytes(ours[:-1])
    assert refusal(lambda: open_in(start, mixed, regrant)) is ErrorCode.PAYLOAD_INVALID
    assert not (tmp_path / "workspace" / "data").exists()


def test_the_provider_can_open_with_the_header_that_it_keeps(world: World, tmp_path: Path) -> None:
    """The stock age command too: header ‖ nonce ‖ chunks is an age file."""
    dataset, _ = world
    sealed = dataset.sealed.read_bytes()
    body = sealed[sealed.index(b"\n", sealed.index(b"\n--- ") + 1) + 1 :]
    (tmp_path / "own.age").write_bytes(dataset.header + body)
    decrypt_file(tmp_path / "own.age", tmp_path / "own.tar", [dataset.provider])
    assert b"grant.json" in (tmp_path / "own.tar").read_bytes()[:100]


GARBAGE = {
    "empty": b"",
    "not JSON": b"\x00\xff" * 50,
    "another document": b'{"version":1}',
    "huge": b" " * (MAX_REGRANT_BYTES + 1),
    "repeated key": b'{"version":1,"version":1}',
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_refused(name: str) -> None:
    assert refusal(lambda: parse_regrant(GARBAGE[name])) is ErrorCode.REGRANT_INVALID


@pytest.mark.parametrize(
    "header",
    [
        "",
        "age-encryption.org/v1\n",
        "x" * MAX_REGRANT_BYTES,
        "{}",
        "age-encryption.org/v1\n-> X25519 a\n\n--- a\n",
    ],
)
def test_a_header_that_is_none_is_refused(header: str, world: World, open_in: Open) -> None:
    dataset, start = world
    regrant = dataset.tagged(dataset.regrant(start.verdict(), key=None, header=header))
    code = refusal(lambda: open_in(start, dataset.sealed, regrant))
    assert code in {ErrorCode.HEADER_INVALID, ErrorCode.REGRANT_INVALID}
    follows = dataset.regrant(start.verdict())
    follows = dataset.tagged(follows.model_copy(update={"header": follows.header + "x"}))
    assert refusal(lambda: open_in(start, dataset.sealed, follows)) is ErrorCode.HEADER_INVALID


def test_only_for_a_job_that_passed(world: World) -> None:
    dataset, start = world
    failed = start.verdict(state=CheckState.CONTRAINDICATED)
    for result in (failed, start.verdict(fresh=False), start.verdict(expires_at=NOW)):
        with pytest.raises(TrainerError) as caught:
            dataset.regrant(result)
        assert caught.value.exit_code == 4
    assert (
        refusal(lambda: dataset.regrant(start.verdict(spec="00" * 32))) is ErrorCode.GRANT_MISMATCH
    )


def test_its_size_does_not_depend_on_the_dataset(tmp_path: Path, derived: Identity) -> None:
    start = Start(derived)
    sizes = set()
    for number, content in enumerate((b"{}\n", b"{}\n" * 2_000_000)):
        folder = tmp_path / str(number)
        folder.mkdir()
        dataset = Dataset(folder, Start(derived), content=content)
        sizes.add(len(dataset.regrant(start.verdict()).canonical()))
    assert len(sizes) == 1
    assert sizes.pop() < 4096
