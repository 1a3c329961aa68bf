"""The exchange by files: the same story as over HTTP, and hostile writers to the directory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.front.conftest import ACKNOWLEDGEMENT, ACKNOWLEDGEMENT_SHA256
from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, JobError, SealingError, UnavailableError, UsageError
from trainer.exchange.spool import SpoolDirectory
from trainer.exchange.upload_authorization import (
    UploadAuthorization,
    UploadScope,
    sign_authorization,
)
from trainer.ipc.front_messages import (
    Acknowledged,
    DeletionReady,
    EvidenceReply,
    EvidenceRequest,
    OpenUpload,
    PrivateEvent,
    RegrantReady,
    ResultReady,
    StatusUpdate,
    UploadReady,
)
from trainer.models import Phase, Status
from trainer.provider.authorization import make_authorizer
from trainer.provider.transport.carrier import Authorize, SealedEvent
from trainer.provider.transport.spool_carrier import SpoolClient
from trainer.provider_keys import ProviderKey

NONCE = "cd" * 32
LIMIT = 16 << 20


@pytest.fixture
def front(start_front: Any) -> Any:
    front = start_front("--files", exchange={"max_upload_bytes": 2048})
    front.silent = True
    assert (front.ready.port, front.ready.tls_spki_sha256) == (0, None)
    return front


def client_of(front: Any) -> SpoolClient:
    return SpoolClient(SpoolDirectory(front.spool), timeout=5, pause=0.02)


def evidence_over(nonce: str) -> str:
    return json.dumps({"claims": {"nonce": nonce}})


def test_the_whole_story(front: Any, tmp_path: Path) -> None:
    client = client_of(front)
    (front.spool / "evidence.json").write_text(evidence_over("0" * 64))  # of an earlier question

    def answer() -> None:
        asked = front.expect(EvidenceRequest)
        front.send(EvidenceReply(id=asked.id, evidence=evidence_over(asked.nonce), error=None))

    supervisor = threading.Thread(target=answer)
    supervisor.start()
    assert client.attestation(NONCE) == evidence_over(NONCE).encode()
    supervisor.join()
    assert client.peer_spki_sha256 is None

    sealed = tmp_path / "sealed"
    sealed.write_bytes(os.urandom(2048))
    front.send(StatusUpdate(status=Status(phase=Phase.AWAITING_DATASET)), OpenUpload(accept=True))
    seen: list[int] = []
    client.upload(sealed, progress=seen.append)
    assert front.expect(UploadReady).size == 2048
    assert (front.spool / "dataset.age").read_bytes() == sealed.read_bytes()
    assert seen == [2048]

    front.send(PrivateEvent(sealed="QUFB"), StatusUpdate(status=Status(phase=Phase.TRAINING)))
    events = client.events("token")
    while isinstance(event := next(events), Status):
        pass
    assert event == SealedEvent(1, "QUFB")

    (front.spool / "result.tar.age").write_bytes(b"sealed result")
    digest = hashlib.sha256(b"sealed result").hexdigest()
    front.send(
        ResultReady(size=13, sha256=digest, acknowledgement_sha256=(ACKNOWLEDGEMENT_SHA256,))
    )
    assert client.download_result(tmp_path / "result", limit=LIMIT) == digest
    assert (tmp_path / "result").read_bytes() == b"sealed result"
    front.send(DeletionReady(statement='{"signed":0}', acknowledged=False))
    while not (front.spool / "deletion.json").exists():
        time.sleep(0.01)

    def sign_again() -> None:
        front.expect(Acknowledged)
        front.send(DeletionReady(statement='{"signed":1}'))

    signing = threading.Thread(target=sign_again)
    signing.start()
    assert client.acknowledge(ACKNOWLEDGEMENT) == b'{"signed":1}', "the one signed after it"
    signing.join()
    front.send(StatusUpdate(status=Status(phase=Phase.DONE)))
    assert list(events)[-1] == Status(phase=Phase.DONE)


def test_the_report_on_a_refused_dataset_is_acknowledged_without_a_wait(
    front: Any, tmp_path: Path
) -> None:
    """A job that goes on signs no deletion statement. What is left of the refusal is not in the next one's way."""
    client = client_of(front)
    sealed = tmp_path / "sealed"
    sealed.write_bytes(b"sealed")
    front.send(StatusUpdate(status=Status(phase=Phase.AWAITING_DATASET)), OpenUpload(accept=True))
    client.upload(sealed)
    front.expect(UploadReady)
    (front.spool / "result.tar.age").write_bytes(b"a report")
    digest = hashlib.sha256(b"a report").hexdigest()
    report = ResultReady(
        size=8, sha256=digest, acknowledgement_sha256=(ACKNOWLEDGEMENT_SHA256,), final=False
    )
    refusal = Status(phase=Phase.AWAITING_DATASET, error="dataset-invalid", result_bytes=8)
    front.send(
        PrivateEvent(sealed="QUFB"), report, StatusUpdate(status=refusal), OpenUpload(accept=True)
    )
    wait_until(lambda: not (front.spool / "dataset.age").exists() and client.status() == refusal)
    assert client.download_result(tmp_path / "report", limit=LIMIT) == digest
    assert client.acknowledge(ACKNOWLEDGEMENT) is None
    front.expect(Acknowledged)
    assert not (front.spool / "events.jsonl").exists()
    client.upload(sealed)
    front.expect(UploadReady, count=2)


def test_a_re_grant_is_taken_while_the_job_waits_for_one(front: Any) -> None:
    client, kept = client_of(front), front.spool / "retained-dataset.age"
    kept.write_bytes(b"sealed to an earlier start")
    client.regrant(b"too early")
    refused = Status(phase=Phase.AWAITING_GRANT, error="regrant-invalid")
    front.send(StatusUpdate(status=refused), OpenUpload(accept=True, regrant=True))
    front.expect(RegrantReady)
    assert (front.spool / "regrant.json").read_bytes() == b"too early", "the supervisor judges it"
    wait_until(lambda: client.status() == Status(phase=Phase.AWAITING_GRANT))
    (front.spool / "regrant.json").unlink()  # as the supervisor takes it
    assert client.status() == Status(phase=Phase.AWAITING_GRANT), "that was about an earlier one"
    front.send(StatusUpdate(status=refused))
    wait_until(lambda: client.status() == refused)
    front.send(OpenUpload(accept=True, regrant=True))
    client.regrant(b"again")
    front.expect(RegrantReady, count=2)
    assert not front.received(UploadReady)
    assert kept.exists()


def test_dataset_that_lies_there_before(front: Any, tmp_path: Path) -> None:
    sealed = tmp_path / "sealed"
    sealed.write_bytes(b"sealed")
    client_of(front).upload(sealed)
    time.sleep(0.5)
    assert front.received(UploadReady) == []
    front.send(OpenUpload(accept=True))
    front.expect(UploadReady)
    # The opening failed: the same file is not delivered again, another one is.
    front.send(OpenUpload(accept=True))
    time.sleep(0.5)
    assert not (front.spool / "dataset.age").exists()
    client_of(front).upload(sealed)
    front.expect(UploadReady, count=2)


def test_why_an_earlier_dataset_was_refused_is_no_answer_to_this_one(
    front: Any, tmp_path: Path
) -> None:
    client = client_of(front)
    refused = Status(phase=Phase.AWAITING_DATASET, error="sealed-header-invalid")
    front.send(StatusUpdate(status=refused))
    while not (front.spool / "status.json").exists():
        time.sleep(0.01)
    assert client.status() == refused
    sealed = tmp_path / "dataset.age"
    sealed.write_bytes(b"sealed")
    client.upload(sealed)
    assert client.status() == Status(phase=Phase.AWAITING_DATASET)
    front.send(OpenUpload(accept=True))
    front.expect(UploadReady)
    front.send(StatusUpdate(status=refused), OpenUpload(accept=True))
    while (front.spool / "dataset.age").exists():
        time.sleep(0.01)
    assert client.status() == refused, "this one was refused, too"


def test_too_large_dataset(front: Any, tmp_path: Path) -> None:
    sealed = tmp_path / "sealed"
    sealed.write_bytes(bytes(2049))
    with pytest.raises(JobError) as caught:
        client_of(front).upload(sealed)
    assert caught.value.code is ErrorCode.DATASET_TOO_LARGE
    assert str(caught.value).endswith("expected at most 2048 bytes, got 2049 bytes")
    sealed.rename(front.spool / "dataset.age")  # someone who does not ask
    front.send(OpenUpload(accept=True))
    deadline = time.monotonic() + 5
    while (front.spool / "dataset.age").exists():
        assert time.monotonic() < deadline
    assert front.received(UploadReady) == []


def test_links_and_devices_are_no_files(front: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(NONCE)
    (front.spool / "dataset.age").symlink_to(secret)
    (front.spool / "nonce").symlink_to(secret)
    os.mkfifo(front.spool / "ack")
    (front.spool / "status.json").symlink_to(secret)
    front.send(OpenUpload(accept=True), StatusUpdate(status=Status(phase=Phase.OPENING)))
    front.send(ResultReady(size=1, sha256="0" * 64, acknowledgement_sha256=("0" * 64,)))
    assert client_of(front).status().phase is Phase.OPENING
    time.sleep(0.6)
    assert front.inbox[1:] == []  # nothing but Ready
    assert secret.read_text() == NONCE
    assert not (front.spool / "dataset.age").is_symlink()


def test_result_that_was_changed(front: Any, tmp_path: Path) -> None:
    (front.spool / "result.tar.age").write_bytes(b"changed")
    front.send(ResultReady(size=6, sha256="0" * 64, acknowledgement_sha256=("0" * 64,)))
    with pytest.raises(SealingError) as caught:
        client_of(front).download_result(tmp_path / "result", limit=LIMIT)
    assert caught.value.code is ErrorCode.RESULT_DIGEST_MISMATCH
    assert not (tmp_path / "result").exists()


def test_earlier_result_is_kept(start_front: Any, tmp_path: Path) -> None:
    (tmp_path / "spool0").mkdir()
    (tmp_path / "spool0" / "result.tar.age").write_bytes(b"not pulled yet")
    (tmp_path / "spool0" / "ack").write_bytes(b"")
    front = start_front("--files")
    assert front.ready.port == 0
    assert (front.spool / "result.tar.age").read_bytes() == b"not pulled yet", (
        "this start may offer it itself"
    )
    front.send(OpenUpload(accept=True), StatusUpdate(status=Status(phase=Phase.AWAITING_DATASET)))
    client = SpoolClient(SpoolDirectory(front.spool))
    while client.status().phase is not Phase.AWAITING_DATASET:
        time.sleep(0.01)
    assert (front.spool / "earlier-result.tar.age").read_bytes() == b"not pulled yet"
    assert not (front.spool / "ack").exists()


def test_nobody_answers(tmp_path: Path) -> None:
    client = SpoolClient(SpoolDirectory(tmp_path), timeout=1, sleep=lambda _: None)
    with pytest.raises(UnavailableError) as caught:
        client.status()
    assert caught.value.code is ErrorCode.TIMEOUT


@pytest.mark.parametrize("name", ["nonce", "ack"])
def test_a_directory_in_the_place_of_what_the_provider_writes(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "inside").mkdir(parents=True)
    client = SpoolClient(SpoolDirectory(tmp_path), timeout=1, sleep=lambda _: None)
    write = client.attestation if name == "nonce" else client.acknowledge
    with pytest.raises(UnavailableError, match=f"{name} in the spool") as caught:
        write(NONCE)
    assert caught.value.code is ErrorCode.JOB_UNREACHABLE
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "content", [b"", b"yes", b"0" * 64, ACKNOWLEDGEMENT_SHA256.encode(), b"x" * 1000]
)
def test_a_writer_of_the_directory_cannot_acknowledge(front: Any, content: bytes) -> None:
    front.send(
        ResultReady(size=1, sha256="0" * 64, acknowledgement_sha256=(ACKNOWLEDGEMENT_SHA256,))
    )
    (front.spool / "ack").write_bytes(content)
    wait_until(lambda: not (front.spool / "ack").exists())
    (front.spool / "ack").write_text(f"{ACKNOWLEDGEMENT}\n")
    assert front.expect(Acknowledged).acknowledgement == ACKNOWLEDGEMENT
    assert len(front.received(Acknowledged)) == 1


def test_directories_in_the_place_of_files_end_no_front(start_front: Any, tmp_path: Path) -> None:
    """Whoever can write to the directory can make one under each name, before the start and after it."""
    names = (
        "ack", "deletion.json", "evidence.json", "events.jsonl", "result.json", "status.json", "exchange.json",
        "nonce", "dataset.age", "earlier-result.tar.age",
    )  # fmt: skip
    for name in names:
        (tmp_path / "spool0" / name / "inside").mkdir(parents=True)
    (tmp_path / "spool0" / "result.tar.age").write_bytes(b"of an earlier job")
    front = start_front("--files")
    front.silent = True
    assert front.ready.port == 0
    for name in names:
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            (front.spool / name / "inside").mkdir(parents=True)
    front.send(OpenUpload(accept=True), PrivateEvent(sealed="QUFB"), DeletionReady(statement="{}"))
    front.send(
        EvidenceReply(id=1, evidence="{}", error=None),
        StatusUpdate(status=Status(phase=Phase.TRAINING)),
    )
    front.send(
        ResultReady(size=1, sha256="0" * 64, acknowledgement_sha256=(ACKNOWLEDGEMENT_SHA256,))
    )
    wait_until(
        lambda: (
            (front.spool / "result.json").is_file() and not (front.spool / "dataset.age").exists()
        )
    )
    assert front.process.poll() is None
    files = (
        "deletion.json",
        "evidence.json",
        "events.jsonl",
        "status.json",
        "earlier-result.tar.age",
    )
    assert [name for name in files if not (front.spool / name).is_file()] == []


@pytest.mark.parametrize(
    "place", [os.mkfifo, lambda path: path.symlink_to("elsewhere")], ids=["FIFO", "link"]
)
def test_what_lies_in_the_place_of_the_events_ends_no_front(front: Any, place: Any) -> None:
    place(front.spool / "events.jsonl")
    front.send(PrivateEvent(sealed="QUFB"), StatusUpdate(status=Status(phase=Phase.TRAINING)))
    wait_until((front.spool / "status.json").exists)
    assert front.process.poll() is None
    assert (front.spool / "events.jsonl").stat().st_size > 0
    assert not (front.spool / "elsewhere").exists()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_job_that_lists_providers_takes_no_dataset_of_a_stranger(
    start_front: Any, tmp_path: Path
) -> None:
    provider = ProviderKey(b"p" * 32)
    front = start_front("--files", exchange={"providers": [provider.public]})
    front.silent = True
    assert front.ready.port == 0
    scope = UploadScope(job_spec_sha256="4d" * 32, recipient_sha256=(sha256_hex(b"age1"),))
    front.send(OpenUpload(accept=True, scope=scope))
    client = client_of(front)
    sealed = tmp_path / "sealed"
    sealed.write_bytes(b"sealed")
    with pytest.raises(UsageError) as caught:
        client.upload(sealed)
    assert caught.value.code is ErrorCode.UNAUTHORIZED
    for token in (
        None,
        b"x.y",
        sign(ProviderKey(bytes(32)))(6, None).encode(),
        sign(provider)(7, None).encode(),
    ):
        if token is not None:
            (front.spool / "dataset.auth").write_bytes(token)
        # By whoever can write to the directory.
        (front.spool / "dataset.age").write_bytes(b"sealed")
        wait_until(lambda: not (front.spool / "dataset.age").exists())
        wait_until(lambda: not (front.spool / "dataset.auth").exists())
    assert front.received(UploadReady) == []
    client.upload(sealed, authorize=sign(provider))
    assert front.expect(UploadReady).size == 6


def test_who_waits_for_a_refused_dataset_is_told(start_front: Any, tmp_path: Path) -> None:
    """It is gone from the directory: without a word, whoever sent it would wait as long as the job does."""
    provider = ProviderKey(b"p" * 32)
    front = start_front(
        "--files", exchange={"providers": [provider.public], "max_upload_bytes": 2048}
    )
    front.silent = True
    scope = UploadScope(
        job_spec_sha256="4d" * 32, recipient_sha256=(sha256_hex(b"age1 of a later start"),)
    )
    waiting = Status(phase=Phase.AWAITING_DATASET)
    front.send(StatusUpdate(status=waiting), OpenUpload(accept=True, scope=scope))
    client = client_of(front)
    (tmp_path / "sealed").write_bytes(b"sealed")
    client.upload(tmp_path / "sealed", authorize=sign(provider))
    wait_until(lambda: client.status().error == ErrorCode.UNAUTHORIZED)
    (tmp_path / "sealed").write_bytes(bytes(2049))
    (tmp_path / "sealed").rename(front.spool / "dataset.age")
    wait_until(lambda: client.status().error == ErrorCode.DATASET_TOO_LARGE)
    front.send(
        OpenUpload(
            accept=True, scope=scope.model_copy(update={"recipient_sha256": (sha256_hex(b"age1"),)})
        )
    )
    (tmp_path / "sealed").write_bytes(b"sealed")
    client.upload(tmp_path / "sealed", authorize=sign(provider))
    front.expect(UploadReady)
    assert client.status() == waiting


def sign(key: ProviderKey) -> Authorize:
    result = SimpleNamespace(job_spec_sha256="4d" * 32, recipient="age1")
    authorize = make_authorizer(key, cast("Any", result))
    assert authorize is not None
    return authorize


def test_providers_of_a_joint_job_do_not_replace_what_another_has_written(
    start_front: Any, tmp_path: Path
) -> None:
    """Both write before the job takes anything: each is taken, one after the other, and each acknowledged."""
    keys = [ProviderKey(letter * 32) for letter in (b"p", b"q")]
    front = start_front(
        "--files", exchange={"providers": [key.public for key in keys], "joint": True}
    )
    assert front.ready.port == 0
    scope = UploadScope(job_spec_sha256="4d" * 32, recipient_sha256=(sha256_hex(b"age1"),))
    taken = []
    for number, key in enumerate(keys):
        sealed = tmp_path / f"sealed{number}"
        sealed.write_bytes(bytes([number]) * 50)
        client_of(front).upload(sealed, authorize=partial(authorization, key))
    for _ in keys:
        front.send(OpenUpload(accept=True, scope=scope))
        wait_until((front.spool / "dataset.age").exists)
        taken.append((front.spool / "dataset.age").read_bytes()[:1])
        (front.spool / "dataset.age").rename(front.spool / f"member-0{len(taken)}.age")
    assert sorted(taken) == [b"\0", b"\1"]
    shown = ["a1" * 32, "b2" * 32]
    for value in shown:
        (front.spool / f"ack-{sha256_hex(value.encode())[:16]}").write_text(value)
    digests = tuple(sha256_hex(value.encode()) for value in shown)
    front.send(ResultReady(size=1, sha256="0" * 64, acknowledgement_sha256=digests))
    wait_until(lambda: len(front.received(Acknowledged)) == len(shown))


def authorization(key: ProviderKey, size: int, _tls_spki_sha256: str | None) -> str:
    document = UploadAuthorization(
        version=1,
        expires_at=2**33,
        job_spec_sha256="4d" * 32,
        recipient_sha256=sha256_hex(b"age1"),
        size=size,
        tls_spki_sha256=None,
    )
    return sign_authorization(document, key)
