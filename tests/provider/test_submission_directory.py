"""A work directory that lies around decides nothing: what it says counts only if this tool wrote it here."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.attestation.result.record import Record, save_record
from trainer.encoding import canonical_json, sha256_hex
from trainer.errors import ErrorCode, TrainerError, UsageError, VerificationError
from trainer.provider.grants import GrantRecord
from trainer.provider.own_files import LocalSecret
from trainer.provider.submission_directory import SubmissionDirectory
from trainer.sealing.age import generate_identity
from trainer.sealing.bundle import Grant, Manifest, ManifestFile
from trainer.simulator.appraisal_world import World, honest_world

DESCRIPTION = canonical_json({"source": "https://job"})
NOW = 1_000.0
MANIFEST = Manifest(
    version=1, salt="5a" * 32, files={"rows.jsonl": ManifestFile(sha256="ef" * 32, size=1)}
)


@pytest.fixture(scope="module")
def world() -> World:
    return honest_world().without_reports()


@pytest.fixture(scope="module")
def record(world: World) -> Record:
    return Record(world.appraise(fresh=True), world.evidence(), world.collateral, world.policy)


@pytest.fixture
def secret(tmp_path: Path) -> LocalSecret:
    return LocalSecret(tmp_path / "state" / "secret")


@pytest.fixture
def begun(tmp_path: Path, world: World, secret: LocalSecret, record: Record) -> SubmissionDirectory:
    """A directory with a record, a grant and a sealed dataset."""
    directory = SubmissionDirectory(tmp_path / "out.submission", secret, world.policy)
    assert not directory.open_for(DESCRIPTION)
    directory.save_record(record)
    directory.save_grant(grant("cd" * 32))
    directory.sealed_dataset.write_bytes(b"sealed")
    return directory


def grant(token: str) -> GrantRecord:
    recipient = str(generate_identity(hybrid=False).recipient())
    fields: dict[str, Any] = {
        "job_spec_sha256": "ab" * 32,
        "recipients": (recipient,),
        "expires_at": 1,
    }
    return GrantRecord(
        grant=Grant(version=1, secret=token, **fields), manifest=MANIFEST, rows=1, header="-"
    )


def opened(directory: SubmissionDirectory) -> SubmissionDirectory:
    assert directory.open_for(DESCRIPTION)
    return directory


def test_what_was_written_here_is_gone_on_with(
    begun: SubmissionDirectory, secret: LocalSecret, world: World, record: Record
) -> None:
    again = opened(SubmissionDirectory(begun.path, secret, world.policy))
    loaded = again.load_record(now=NOW)
    assert loaded == record
    assert loaded.result.fresh
    assert (again.load_grant() or grant("")).grant.secret == "cd" * 32
    assert again.load_peer_key(loaded) == world.peer


ATTACKS: dict[str, Callable[[Path, Record], object]] = {
    "the operator's record": lambda path, record: (path / "attestation.json").write_bytes(save_record(record)),
    "a record of another name": lambda path, _: shutil.copy(path / "grant.json", path / "attestation.json"),
    "an edited record": lambda path, _: edit(path / "attestation.json", b'"appraised_at":', b'"appraised_at":1'),
    "an edited grant": lambda path, _: edit(path / "grant.json", b"cdcd", b"cece"),
    "a grant without a tag": lambda path, _: (path / "grant.json").write_text(grant("ab" * 32).model_dump_json()),
    "an edited description": lambda path, _: edit(path / "submission.json", b"https://job", b"https://bad"),
    "a link to a record": lambda path, _: relink(path / "attestation.json"),
    "a link for a marker": lambda path, _: (path / "uploaded").symlink_to(path.parent / "made"),
    "an open mode": lambda path, _: path.chmod(0o750),
}  # fmt: skip


def resume(directory: SubmissionDirectory) -> None:
    directory.open_for(DESCRIPTION)
    directory.load_record(now=NOW)
    directory.load_grant()


def edit(path: Path, before: bytes, after: bytes) -> None:
    data = path.read_bytes()
    assert before in data
    path.write_bytes(data.replace(before, after))


def relink(path: Path) -> None:
    target = path.parent.parent / "elsewhere"
    path.rename(target)
    path.symlink_to(target)


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_somebody_else_wrote_is_refused(
    attack: str,
    begun: SubmissionDirectory,
    secret: LocalSecret,
    world: World,
    record: Record,
    tmp_path: Path,
) -> None:
    ATTACKS[attack](begun.path, record)
    again = SubmissionDirectory(begun.path, secret, world.policy)
    with pytest.raises(TrainerError) as caught:
        resume(again)
    assert isinstance(caught.value, UsageError | VerificationError)
    assert caught.value.hint
    assert not (tmp_path / "made").exists()
    assert begun.path.exists(), "nothing of it is removed"


def test_a_directory_that_came_with_a_folder_is_refused(
    begun: SubmissionDirectory, world: World, tmp_path: Path, secret: LocalSecret
) -> None:
    """Everything in it is right, of another machine or another place: as an operator could ship it."""
    foreign = SubmissionDirectory(
        begun.path, LocalSecret(tmp_path / "mine" / "secret"), world.policy
    )
    shutil.copytree(begun.path, tmp_path / "other.submission")
    copied = SubmissionDirectory(tmp_path / "other.submission", secret, world.policy)
    for directory in (foreign, copied):
        with pytest.raises(VerificationError, match="not of this tool on this machine"):
            directory.open_for(DESCRIPTION)


def test_a_record_under_another_policy_than_this_commands_is_not_used(
    begun: SubmissionDirectory, secret: LocalSecret, world: World
) -> None:
    other = world.demanding("app", compose_sha256=("00" * 32,)).policy
    with pytest.raises(VerificationError, match="another policy"):
        opened(SubmissionDirectory(begun.path, secret, other)).load_record(now=NOW)


@pytest.mark.parametrize("content", [(), ("mine.txt",), ("attestation.json",)])
def test_a_folder_of_the_users_own_is_not_adopted(
    content: tuple[str, ...], tmp_path: Path, secret: LocalSecret, world: World
) -> None:
    path = tmp_path / "out.submission"
    path.mkdir(mode=0o700)
    for name in content:
        (path / name).write_text("mine")
    with pytest.raises(UsageError) as caught:
        SubmissionDirectory(path, secret, world.policy).open_for(DESCRIPTION)
    assert caught.value.code is ErrorCode.OUTPUT_EXISTS
    assert sorted(file.name for file in path.iterdir()) == sorted(content)


def test_numbers_of_failures_lead_nowhere_else(begun: SubmissionDirectory, tmp_path: Path) -> None:
    (begun.path / "failures").write_text(f"{sha256_hex(b'report')}:/../../x\n")
    (tmp_path / "out.failure-1.deletion.json").write_text("mine")
    assert (
        begun._find_failure(sha256_hex(b"report"), tmp_path / "out") == tmp_path / "out.failure-2"
    )
    assert (tmp_path / "out.failure-1.deletion.json").read_text() == "mine"
