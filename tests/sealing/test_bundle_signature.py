"""Signed bundles: no part of one is good with another, and a job that lists providers takes no others."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, SealingError
from trainer.provider_keys import ProviderKey
from trainer.sealing.age import Identity, encrypt
from trainer.sealing.bundle import (
    BundleLimits,
    Grant,
    Manifest,
    ManifestFile,
    OpenedBundle,
    pack_bundle,
)
from trainer.sealing.bundle_signature import BundleSignature, sign_bundle
from trainer.sealing.grant_secrets import manifest_salt
from trainer.sealing.seal import open_bundle

PROVIDER, STRANGER = ProviderKey(b"p" * 32), ProviderKey(b"s" * 32)
LISTED = (ProviderKey(b"o" * 32).public, PROVIDER.public)

Sign = Callable[[str, str], BundleSignature]
Seal = Callable[..., Path]


@pytest.fixture
def seal_for(tmp_path: Path, grant: Grant, hybrid: Identity) -> Seal:
    """Seals to a job, as its provider or as a stranger who knows the recipient."""

    def seal(sign: Sign | None, *, content: bytes = b"{}\n", to: Identity = hybrid) -> Path:
        (tmp_path / "rows").write_bytes(content)
        bundle = io.BytesIO()
        pack_bundle(bundle, grant, {"rows": tmp_path / "rows"}, sign)
        with (tmp_path / "dataset.age").open("wb") as sealed:
            encrypt(io.BytesIO(bundle.getvalue()), sealed, [to.recipient()])
        return tmp_path / "dataset.age"

    return seal


@pytest.fixture
def open_in_job(
    tmp_path: Path, hybrid: Identity, stranger: Identity
) -> Callable[..., OpenedBundle]:
    workspace = tmp_path / "workspace"
    workspace.mkdir()

    def open_it(sealed: Path, providers: tuple[str, ...] = LISTED) -> OpenedBundle:
        # The second identity is the job's other key.
        identities = [hybrid, stranger]
        return open_bundle(
            sealed,
            identities,
            "5a" * 32,
            workspace,
            now=0,
            limits=BundleLimits(),
            providers=providers,
        )

    return open_it


def signer(key: ProviderKey, identity: Identity) -> Sign:
    return lambda grant, manifest: sign_bundle(key, str(identity.recipient()), grant, manifest)


def refusal(action: Callable[[], object]) -> ErrorCode:
    with pytest.raises(SealingError) as caught:
        action()
    return caught.value.code


def test_a_listed_provider_is_accepted(
    seal_for: Seal, open_in_job: Callable[..., OpenedBundle], hybrid: Identity
) -> None:
    assert open_in_job(seal_for(signer(PROVIDER, hybrid))).files.keys() == {"rows"}


def test_the_jobs_other_key_is_a_recipient_too(
    seal_for: Seal, open_in_job: Callable[..., OpenedBundle], stranger: Identity
) -> None:
    assert open_in_job(seal_for(signer(PROVIDER, stranger), to=stranger)).files.keys() == {"rows"}


def test_a_stranger_is_refused(
    seal_for: Seal, open_in_job: Callable[..., OpenedBundle], hybrid: Identity, tmp_path: Path
) -> None:
    assert refusal(lambda: open_in_job(seal_for(None))) is ErrorCode.GRANT_UNSIGNED
    assert (
        refusal(lambda: open_in_job(seal_for(signer(STRANGER, hybrid))))
        is ErrorCode.GRANT_SIGNER_UNKNOWN
    )

    def claim_to_be_listed(grant: str, manifest: str) -> BundleSignature:
        own = sign_bundle(STRANGER, str(hybrid.recipient()), grant, manifest)
        return own.model_copy(update={"provider": PROVIDER.public})

    assert (
        refusal(lambda: open_in_job(seal_for(claim_to_be_listed)))
        is ErrorCode.GRANT_SIGNATURE_INVALID
    )
    assert list((tmp_path / "workspace").iterdir()) == [], "no data is left"


def test_a_grant_with_other_data_is_refused(
    seal_for: Seal, open_in_job: Callable[..., OpenedBundle], grant: Grant, hybrid: Identity
) -> None:
    # Of other data.
    honest = sign_bundle(PROVIDER, str(hybrid.recipient()), grant.sha256(), "00" * 32)
    assert (
        refusal(lambda: open_in_job(seal_for(lambda *_: honest)))
        is ErrorCode.GRANT_SIGNATURE_INVALID
    )


def test_the_data_with_another_grant_is_refused(
    seal_for: Seal, open_in_job: Callable[..., OpenedBundle], grant: Grant, hybrid: Identity
) -> None:
    """Whoever opened a bundle must not let others read the result of the same data."""
    other = grant.model_copy(update={"expires_at": grant.expires_at - 1})

    def replayed(_grant: str, manifest: str) -> BundleSignature:
        return sign_bundle(PROVIDER, str(hybrid.recipient()), other.sha256(), manifest)

    assert refusal(lambda: open_in_job(seal_for(replayed))) is ErrorCode.GRANT_SIGNATURE_INVALID


def test_a_bundle_that_was_sealed_again_to_another_vm_is_refused(
    seal_for: Seal, open_in_job: Callable[..., OpenedBundle], x25519: Identity
) -> None:
    """Who could open it sealed it to this job, whose evidence the provider never saw."""
    assert (
        refusal(lambda: open_in_job(seal_for(signer(PROVIDER, x25519))))
        is ErrorCode.GRANT_SIGNATURE_INVALID
    )


def test_without_a_list_a_bundle_needs_no_signature_but_a_wrong_one_is_refused(
    seal_for: Seal, open_in_job: Callable[..., OpenedBundle], hybrid: Identity, x25519: Identity
) -> None:
    wrong = seal_for(signer(STRANGER, x25519))
    assert refusal(lambda: open_in_job(wrong, ())) is ErrorCode.GRANT_SIGNATURE_INVALID
    assert open_in_job(seal_for(None), ()).files.keys() == {"rows"}


@pytest.mark.parametrize(
    "members",
    [
        [("signature.json", b"{}")],
        [("signature.json", b'{"version":1}')],
        [("signature.json", b" " * 2000)],
        [("other.json", b"{}")],
        [("signature.json", sign_bundle(PROVIDER, "age1", "00", "00").canonical()), ("more", b"")],
    ],
    ids=["empty", "incomplete", "large", "another file", "a file after it"],
)
def test_what_follows_the_manifest_is_a_signature_or_nothing(
    members: list[tuple[str, bytes]], tmp_path: Path, grant: Grant, forge: Callable[..., bytes], hybrid: Identity,
    open_in_job: Callable[..., OpenedBundle],
) -> None:  # fmt: skip
    entry = ManifestFile(sha256=sha256_hex(b"1"), size=1)
    manifest = Manifest(version=1, files={"a": entry}, salt=manifest_salt(grant.secret))
    data = forge(
        ("grant.json", grant.canonical()),
        ("data/a", b"1"),
        ("manifest.json", manifest.canonical()),
        *members,
    )
    with (tmp_path / "dataset.age").open("wb") as sealed:
        encrypt(io.BytesIO(data), sealed, [hybrid.recipient()])
    assert refusal(lambda: open_in_job(tmp_path / "dataset.age", ())) is ErrorCode.BUNDLE_INVALID
