"""Checkpoints against whoever keeps the directory: they can be lost, and nothing else can be done with them."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import BinaryIO

import pytest

from trainer import logs
from trainer.encoding import stream_sha256
from trainer.errors import ErrorCode, JobError, SealingError
from trainer.job.checkpoints import CheckpointStore
from trainer.job.ciphertext import CiphertextDirectory
from trainer.logs import PublicEvent
from trainer.sealing import sealed_checkpoint as sealed
from trainer.sealing.age import encrypt_file, generate_identity
from trainer.sealing.bundle import Grant
from trainer.sealing.sealed_checkpoint import (
    CheckpointBinding,
    CheckpointKeys,
    open_checkpoint,
    seal_checkpoint,
)
from trainer.sealing.state_key import checkpoint_keys
from trainer.training.run_inputs import CHECKPOINT_FILES, CHECKPOINTS_DIR

SECRET = "cd" * 32
BINDING = CheckpointBinding(
    job_spec_sha256="0a" * 32, dataset_manifest_sha256="0b" * 32, app_compose_sha256="0c" * 32
)
CONTENT = {"metrics.jsonl": b"", "state.json": b"{}", "state.safetensors": bytes(200_000)}


RECIPIENT = str(generate_identity(hybrid=False).recipient())


def keys_for(binding: CheckpointBinding = BINDING, *, secret: str = SECRET) -> CheckpointKeys:
    spec = binding.job_spec_sha256
    grant = Grant(
        version=1, job_spec_sha256=spec, recipients=(RECIPIENT,), expires_at=1, secret=secret
    )
    return checkpoint_keys([grant], binding)


STARTS = count()
"""Numbers for directories: those of an object that is gone may be given to the next one."""


class Job:
    """A start of a job over a directory that stays."""

    def __init__(
        self, folder: Path, keys: CheckpointKeys | None = None, binding: CheckpointBinding = BINDING
    ) -> None:
        self.output = folder / "output"
        self.events: list[PublicEvent] = []
        self.at = CheckpointStore(
            folder / "ciphertext", keys or keys_for(binding), binding, 2, self.events.append
        )
        self.at.folder.mkdir(exist_ok=True)
        self._folder = folder

    def write(self, step: int, content: dict[str, bytes] | None = None) -> Path:
        """What the worker leaves."""
        folder = self.output / CHECKPOINTS_DIR / str(step)
        folder.mkdir(parents=True)
        for name, data in {**CONTENT, **(content or {})}.items():
            (folder / name).write_bytes(data)
        return folder

    def take(self, *steps: int) -> None:
        for step in steps:
            self.at.take(step, self.write(step, {"state.json": b"%d" % step}).parents[1])

    def resume(self) -> tuple[int | None, list[PublicEvent]]:
        """Step of the next start, and what is said in public."""
        into = self._folder / f"into-{next(STARTS)}"
        self.events.clear()
        step = self.at.resume(into)
        if step is None:
            assert not into.exists(), "nothing of what was refused stays"
        else:
            assert {path.name: path.read_bytes() for path in into.iterdir()} == {
                **CONTENT, "state.json": b"%d" % step,
            }  # fmt: skip
        return step, list(self.events)


def test_the_newest_is_gone_on_with_and_the_last_ones_stay(tmp_path: Path) -> None:
    job = Job(tmp_path)
    assert job.resume() == (None, []), "a first start has nothing to say"
    job.take(1, 2, 10)
    sizes = {step: job.at.path(step).stat().st_size for step in (2, 10)}
    assert job.events[1:] == [
        logs.CheckpointSealed(2, sizes[2]),
        logs.CheckpointSealed(10, sizes[10]),
    ]
    assert sorted(job.at.folder.iterdir()) == [job.at.path(2), job.at.path(10)]
    assert list((job.output / CHECKPOINTS_DIR).iterdir()) == [], "the plaintext is gone"
    again = Job(tmp_path)
    assert again.resume() == (10, [logs.Resumed(10)])
    assert again.at.last == 10
    again.take(12)
    assert sorted(job.at.folder.iterdir()) == [job.at.path(10), job.at.path(12)]
    CiphertextDirectory(job.at.folder, persistent=True).remove_inputs()
    assert list(job.at.folder.iterdir()) == []


def flipped(at: float) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        place = int(at * (len(data) - 1))
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    return flip


def chunks_swapped(data: bytes) -> bytes:
    size = (1 << 16) + 16
    start = data.index(b"\n--- ") + 5
    start = data.index(b"\n", start) + 1 + 16
    first, second = data[start : start + size], data[start + size : start + 2 * size]
    assert len(second) == size
    return data[:start] + second + first + data[start + 2 * size :]


ATTACKS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _data: b"",
    "torn in the header": lambda data: data[:100],
    "torn in the payload": lambda data: data[: len(data) // 2],
    "torn by a byte": lambda data: data[:-1],
    "a whole chunk missing": lambda data: data[: -((len(data) - 1) % ((1 << 16) + 16)) - 1],
    "something behind it": lambda data: data + b"\0",
    "header changed": flipped(0.002),
    "payload changed": flipped(0.5),
    "last byte changed": flipped(1.0),
    "chunks in another order": chunks_swapped,
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_what_is_torn_or_tampered_with_is_passed_over_for_the_one_before(
    attack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    job = Job(tmp_path)
    job.take(3, 7)
    path = job.at.path(7)
    path.write_bytes(attack(path.read_bytes()))
    step, events = Job(tmp_path).resume()
    assert step == 3
    assert [event.event for event in events] == ["checkpoint-refused", "resumed"]
    job.at.path(3).unlink()
    step, events = Job(tmp_path).resume()
    assert step is None
    assert events[-1] == logs.StartsOver(1), "it begins at the beginning, and says so"


OTHERS = {
    "spec": keys_for(BINDING.model_copy(update={"job_spec_sha256": "1a" * 32})),
    "dataset": keys_for(BINDING.model_copy(update={"dataset_manifest_sha256": "1b" * 32})),
    "app": keys_for(BINDING.model_copy(update={"app_compose_sha256": "1c" * 32})),
    "provider": keys_for(secret="ce" * 32),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_job_opens_under_no_name(
    other: CheckpointKeys, tmp_path: Path
) -> None:
    theirs, ours = Job(tmp_path, other), Job(tmp_path)
    theirs.take(5)
    assert ours.resume() == (
        None,
        [logs.CheckpointRefused(ErrorCode.NO_IDENTITY_MATCH), logs.StartsOver(1)],
    )
    theirs.at.path(5).rename(ours.at.path(5))
    assert ours.resume() == (
        None,
        [logs.CheckpointRefused(ErrorCode.NO_IDENTITY_MATCH), logs.StartsOver(1)],
    )


def test_an_older_one_put_back_costs_work_and_cannot_pass_for_a_newer_one(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.take(3)
    old = job.at.path(3).read_bytes()
    job.take(7, 9)
    job.at.path(9).write_bytes(old)
    step, events = Job(tmp_path).resume()
    assert step == 7
    assert events[0] == logs.CheckpointRefused(ErrorCode.CHECKPOINT_INVALID)
    for path in job.at.folder.iterdir():
        path.unlink()
    job.at.path(3).write_bytes(old)
    assert Job(tmp_path).resume()[0] == 3


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_what_is_no_regular_file_is_passed_over(kind: str, tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.take(3)
    path, target = job.at.path(4), tmp_path / "elsewhere"
    job.at.path(3).rename(target)
    if kind == "link":
        path.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    step, events = Job(tmp_path).resume()
    assert step is None
    assert [event.event for event in events] == ["checkpoint-refused", "starts-over"]


def opened(
    path: Path,
    into: Path,
    keys: CheckpointKeys,
    step: int = 1,
    binding: CheckpointBinding = BINDING,
) -> ErrorCode | None:
    try:
        with path.open("rb", buffering=0) as source:
            open_checkpoint(source, into, step=step, binding=binding, keys=keys)
    except SealingError as error:
        assert not into.exists()
        return error.code
    return None


def test_who_can_only_encrypt_cannot_write_one(tmp_path: Path) -> None:
    """The recipient is no secret to a broken recipient scheme; the tag's key is another one."""
    job = Job(tmp_path)
    folder = job.write(1)
    keys = keys_for()
    forger = CheckpointKeys(keys.identity, bytearray(32), keys.label)
    target = tmp_path / "forged"
    seal_checkpoint(folder, CHECKPOINT_FILES, target, step=1, binding=BINDING, keys=forger)
    assert opened(target, tmp_path / "into", keys) is ErrorCode.CHECKPOINT_INVALID
    assert opened(target, tmp_path / "into", forger) is None


def test_destroyed_keys_neither_open_nor_write(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.take(1)
    path, destroyed = job.at.path(1), keys_for()
    destroyed.destroy()
    assert not any(destroyed.authentication)
    assert opened(path, tmp_path / "into", destroyed) is ErrorCode.NO_IDENTITY_MATCH
    assert opened(path, tmp_path / "into", keys_for()) is None


def test_the_binding_is_looked_at_even_under_the_same_keys(tmp_path: Path) -> None:
    folder, target, keys = Job(tmp_path).write(1), tmp_path / "file", keys_for()
    seal_checkpoint(folder, CHECKPOINT_FILES, target, step=1, binding=BINDING, keys=keys)
    for name in type(BINDING).model_fields:
        other = BINDING.model_copy(update={name: "ff" * 32})
        assert (
            opened(target, tmp_path / "into", keys, binding=other) is ErrorCode.CHECKPOINT_INVALID
        )
    assert opened(target, tmp_path / "into", keys, step=2) is ErrorCode.CHECKPOINT_INVALID


def test_other_archives_under_the_right_key_are_refused(tmp_path: Path) -> None:
    keys, target = keys_for(), tmp_path / "file"
    plain = tmp_path / "plain"
    for content in (b"", b"\x80\x04.", bytes(10240)):
        plain.write_bytes(content)
        encrypt_file(plain, target, [keys.identity.recipient()])
        assert opened(target, tmp_path / "into", keys) in {
            ErrorCode.BUNDLE_INVALID,
            ErrorCode.CHECKPOINT_INVALID,
        }
        target.unlink()


@pytest.mark.parametrize("kind", ["file", "directory", "above", "pipe", "missing"])
def test_no_link_of_a_broken_worker_is_followed(kind: str, tmp_path: Path) -> None:
    """A link to the supervisor's files would seal them, and hand them to the worker at the next start."""
    job = Job(tmp_path)
    folder = job.write(1)
    secret = tmp_path / "secret"
    secret.mkdir()
    for name, data in CONTENT.items():
        (secret / name).write_bytes(data)
    (secret / "1").mkdir()
    file = folder / "state.json"
    if kind == "above":
        (job.output / CHECKPOINTS_DIR).rename(tmp_path / "moved")
        (job.output / CHECKPOINTS_DIR).symlink_to(secret)
    elif kind == "directory":
        folder.rename(tmp_path / "moved")
        folder.symlink_to(secret)
    else:
        file.unlink()
        if kind == "file":
            file.symlink_to(secret / "state.json")
        elif kind == "pipe":
            os.mkfifo(file)
    with pytest.raises(JobError) as caught:
        job.at.take(1, job.output)
    assert caught.value.code is ErrorCode.WORKER_DIED
    assert job.events == []
    assert list(job.at.folder.iterdir()) == []
    assert {path.name for path in secret.iterdir()} == {*CONTENT, "1"}, (
        "nothing is removed behind a link"
    )


def test_a_worker_that_changes_what_it_saved_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the sealing breaks off can be seen on the operator's disk: a number of the worker's choice."""
    job = Job(tmp_path)
    folder = job.write(1)

    def hash_and_change(stream: BinaryIO) -> str:
        digest = stream_sha256(stream)
        (folder / "state.safetensors").write_bytes(digest[:2].encode() * 100_000)
        return digest

    monkeypatch.setattr(sealed, "stream_sha256", hash_and_change)
    with pytest.raises(JobError) as caught:
        job.at.take(1, job.output)
    assert caught.value.code is ErrorCode.WORKER_DIED
    assert list(job.at.folder.iterdir()) == []
    assert list((job.output / CHECKPOINTS_DIR).iterdir()) == []


def test_a_full_disk_costs_the_checkpoint_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path)
    job.take(1)

    def full(_descriptor: int) -> None:
        raise OSError(28, "no space")

    with monkeypatch.context() as patched:
        patched.setattr("trainer.atomic_files.os.fsync", full)
        job.take(2)
    assert job.events[-1] == logs.CheckpointMissed(2, ErrorCode.STORAGE_FULL)
    assert list(job.at.folder.iterdir()) == [job.at.path(1)], (
        "the one before stays, and no torn file"
    )
    assert Job(tmp_path).resume()[0] == 1


def test_nothing_of_it_can_be_read_without_the_keys(tmp_path: Path) -> None:
    job = Job(tmp_path)
    canary = b"xylophonequartz"
    job.at.take(1, job.write(1, {"metrics.jsonl": canary * 20}).parents[1])
    data = job.at.path(1).read_bytes()
    assert canary not in data
    assert BINDING.dataset_manifest_sha256.encode() not in data
    stranger = CheckpointKeys(generate_identity(), job.at.keys.authentication, job.at.keys.label)
    assert opened(job.at.path(1), tmp_path / "into", stranger) is ErrorCode.NO_IDENTITY_MATCH
    assert sealed.HEADER_NAME.encode() not in data
