"""Sealing to a verified job, and opening inside it."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.attestation.checks import Check, CheckState
from trainer.attestation.evidence import DatasetClaims, DerivedKeys, Recipients
from trainer.attestation.result.attestation_result import APPRAISER, AttestationResult
from trainer.errors import ErrorCode, SealingError, TrainerError, UsageError, VerificationError
from trainer.sealing.age import Identity, decrypt_file, encrypt_file
from trainer.sealing.bundle import BundleLimits, Grant, OpenedBundle, pack_bundle
from trainer.sealing.seal import open_bundle, seal

NOW = 1_800_000_000
LIMITS = BundleLimits(max_files=10, max_bytes=64 << 20)
SPEC = "5a" * 32

Seal = Callable[[Path], object]


@pytest.fixture
def result(hybrid: Identity, stranger: Identity) -> Callable[..., AttestationResult]:
    """Verdicts as `appraise` gives them, with one check in the given state."""

    def make(
        state: CheckState = CheckState.AFFIRMED,
        *,
        spec: str = SPEC,
        nonce: str | None = "00" * 32,
        fresh: bool = True,
    ) -> AttestationResult:
        claims = DatasetClaims(
            version=1,
            purpose="dataset",
            nonce="00" * 32,
            job_spec_sha256=spec,
            recipients=Recipients(
                derived=str(hybrid.recipient()), instance=str(stranger.recipient())
            ),
            derived_keys=DerivedKeys(recipient="02" * 33, possession="02" * 33),
            receipt_key="30" * 91,
            tls_key=None,
            gpu_evidence_sha256=None,
            sandbox={},
            software={},
            issued_at=NOW - 60,
            expires_at=NOW + 3600,
        )
        return AttestationResult(
            checks=(Check(number=1, code="quote-signature", title="the quote", state=state),),
            claims=claims,
            recipient=str(hybrid.recipient()),
            td=None,
            compose_sha256="00" * 32,
            policy_sha256="00" * 32,
            appraised_at=NOW - 30,
            expires_at=NOW + 3600,
            nonce=nonce,
            peer_spki_sha256=None,
            development_root=False,
            cautions=(),
            fresh=fresh,
            appraiser=APPRAISER,
        )

    return make


@pytest.fixture
def files(tmp_path: Path, plaintext: Callable[[int], bytes]) -> dict[str, Path]:
    path = tmp_path / "train.jsonl"
    path.write_bytes(plaintext(3 << 20))
    return {"train.jsonl": path}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir()
    return path


def _open(
    source: Path, identity: Identity, workspace: Path, *, spec: str = SPEC, now: int = NOW
) -> OpenedBundle:
    return open_bundle(source, [identity], spec, workspace, now=now, limits=LIMITS)


def test_round_trip(
    result: Callable[..., AttestationResult],
    files: dict[str, Path],
    grant: Grant,
    hybrid: Identity,
    workspace: Path,
    tmp_path: Path,
) -> None:
    sealing: list[int] = []
    manifest = seal(
        files, result(), grant, tmp_path / "dataset.age", now=NOW, progress=sealing.append
    )
    opened = _open(tmp_path / "dataset.age", hybrid, workspace)
    assert opened.grant == grant
    assert opened.manifest == manifest
    assert opened.files["train.jsonl"].read_bytes() == files["train.jsonl"].read_bytes()
    assert [path.name for path in workspace.iterdir()] == ["data"]  # the plaintext is there once
    assert sealing[-1] > files["train.jsonl"].stat().st_size


@pytest.mark.parametrize("stale", [{"fresh": False}, {"nonce": None}])
def test_nothing_is_sealed_to_a_result_that_is_not_fresh(
    stale: dict[str, bool | None],
    result: Callable[..., AttestationResult],
    files: dict[str, Path],
    grant: Grant,
    tmp_path: Path,
) -> None:
    with pytest.raises(VerificationError, match="not fresh") as caught:
        seal(files, result(**stale), grant, tmp_path / "dataset.age", now=NOW)
    assert caught.value.hint is not None
    assert not (tmp_path / "dataset.age").exists()


@pytest.mark.parametrize("state", [CheckState.CONTRAINDICATED, CheckState.NOT_REACHED])
def test_nothing_is_sealed_to_a_job_that_failed(
    state: CheckState,
    result: Callable[..., AttestationResult],
    files: dict[str, Path],
    grant: Grant,
    tmp_path: Path,
) -> None:
    with pytest.raises(VerificationError) as caught:
        seal(files, result(state), grant, tmp_path / "dataset.age", now=NOW)
    assert caught.value.code is ErrorCode.VERIFICATION_FAILED
    assert not (tmp_path / "dataset.age").exists()


@pytest.mark.parametrize(
    ("now", "changes", "code"),
    [
        (NOW + 3600, {}, ErrorCode.ATTESTATION_EXPIRED),
        (NOW, {"job_spec_sha256": "5b" * 32}, ErrorCode.GRANT_MISMATCH),
        (NOW, {"expires_at": NOW}, ErrorCode.GRANT_EXPIRED),
    ],
)
def test_what_does_not_fit_together_is_not_sealed(
    now: int,
    changes: dict[str, object],
    code: ErrorCode,
    result: Callable[..., AttestationResult],
    files: dict[str, Path],
    grant: Grant,
    tmp_path: Path,
) -> None:
    with pytest.raises(TrainerError) as caught:
        seal(files, result(), grant.model_copy(update=changes), tmp_path / "dataset.age", now=now)
    assert caught.value.code is code
    assert {path.name for path in tmp_path.iterdir()} == {"train.jsonl"}


def test_a_missing_file_leaves_no_target(
    result: Callable[..., AttestationResult], files: dict[str, Path], grant: Grant, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        seal(
            files | {"zz": tmp_path / "absent"}, result(), grant, tmp_path / "dataset.age", now=NOW
        )
    assert caught.value.code is ErrorCode.FILE_NOT_FOUND
    assert {path.name for path in tmp_path.iterdir()} == {"train.jsonl"}


@pytest.fixture
def sealed(
    result: Callable[..., AttestationResult], files: dict[str, Path], grant: Grant, tmp_path: Path
) -> Path:
    seal(files, result(), grant, tmp_path / "dataset.age", now=NOW)
    return tmp_path / "dataset.age"


def _refusal(action: Callable[[], object], workspace: Path) -> ErrorCode:
    with pytest.raises(SealingError) as caught:
        action()
    assert list(workspace.iterdir()) == []
    return caught.value.code


def test_another_job_cannot_open_it(sealed: Path, stranger: Identity, workspace: Path) -> None:
    code = _refusal(lambda: _open(sealed, stranger, workspace), workspace)
    assert code is ErrorCode.NO_IDENTITY_MATCH


def test_the_grant_binds_the_job_spec(sealed: Path, hybrid: Identity, workspace: Path) -> None:
    code = _refusal(lambda: _open(sealed, hybrid, workspace, spec="5b" * 32), workspace)
    assert code is ErrorCode.GRANT_MISMATCH


def test_the_grant_expires(sealed: Path, hybrid: Identity, workspace: Path, grant: Grant) -> None:
    code = _refusal(lambda: _open(sealed, hybrid, workspace, now=grant.expires_at), workspace)
    assert code is ErrorCode.GRANT_EXPIRED


@pytest.mark.parametrize("cut", [1, 16, 65_536, 1 << 20, 2 << 20])
def test_a_truncated_dataset_leaves_nothing(
    sealed: Path, hybrid: Identity, workspace: Path, cut: int
) -> None:
    os.truncate(sealed, sealed.stat().st_size - cut)
    assert (
        _refusal(lambda: _open(sealed, hybrid, workspace), workspace) is ErrorCode.PAYLOAD_INVALID
    )


def test_a_changed_last_chunk_leaves_nothing(
    sealed: Path, hybrid: Identity, workspace: Path
) -> None:
    data = bytearray(sealed.read_bytes())
    data[-1] ^= 1
    sealed.write_bytes(data)
    assert (
        _refusal(lambda: _open(sealed, hybrid, workspace), workspace) is ErrorCode.PAYLOAD_INVALID
    )


def test_whole_chunks_after_the_archive_leave_nothing(
    sealed: Path, hybrid: Identity, workspace: Path, tmp_path: Path
) -> None:
    decrypt_file(sealed, tmp_path / "tar", [hybrid])
    with (tmp_path / "tar").open("ab") as archive:
        archive.write(bytes(1 << 20))
    encrypt_file(tmp_path / "tar", sealed, [hybrid.recipient()])
    assert _refusal(lambda: _open(sealed, hybrid, workspace), workspace) is ErrorCode.BUNDLE_INVALID


def test_limits_hold(sealed: Path, hybrid: Identity, workspace: Path) -> None:
    small = BundleLimits(max_files=10, max_bytes=1 << 20)
    code = _refusal(
        lambda: open_bundle(sealed, [hybrid], SPEC, workspace, now=NOW, limits=small),
        workspace,
    )
    assert code is ErrorCode.BUNDLE_INVALID


def test_what_was_sealed_is_a_bundle(
    sealed: Path, files: dict[str, Path], grant: Grant, hybrid: Identity, tmp_path: Path
) -> None:
    plain = io.BytesIO()
    pack_bundle(plain, grant, files)
    decrypt_file(sealed, tmp_path / "tar", [hybrid])
    assert (tmp_path / "tar").read_bytes() == plain.getvalue()


def test_a_missing_dataset(hybrid: Identity, workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        _open(tmp_path / "absent", hybrid, workspace)
    assert caught.value.code is ErrorCode.FILE_NOT_FOUND


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "directory"])
def test_what_is_no_file_is_refused_like_any_upload(
    kind: str, hybrid: Identity, workspace: Path, tmp_path: Path
) -> None:
    """A link could lead to a private file, and a pipe would keep the job waiting for ever."""
    source = tmp_path / "dataset.age"
    if kind == "pipe":
        os.mkfifo(source)
    elif kind == "directory":
        source.mkdir()
    else:
        source.symlink_to("private")
        if kind == "link":
            (tmp_path / "private").write_bytes(b"age-encryption.org/v1")
    with pytest.raises(SealingError) as caught:
        _open(source, hybrid, workspace)
    assert caught.value.code is ErrorCode.BUNDLE_INVALID
