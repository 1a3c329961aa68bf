"""Uploads and downloads that break, and go on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import (
    ErrorCode,
    JobError,
    SealingError,
    TrainerError,
    UnavailableError,
    UsageError,
)
from trainer.ipc.front_messages import UploadReady
from trainer.models import Phase
from trainer.provider.transport.uploading import UploadState

NONCE = "cd" * 32
LIMIT = 16 << 20
TOKEN = "5c" * 32


def test_upload_over_connections_that_break(
    client_of: Any, front: Any, relay: Any, tmp_path: Path
) -> None:
    sealed = tmp_path / "sealed"
    sealed.write_bytes(os.urandom(6 << 20))
    relay.cut_up = [900_000, 3000, 2_500_000, 1]
    seen: list[int] = []
    with client_of(front, relay.url) as client:
        client.upload(sealed, progress=seen.append)
    assert relay.connections >= 4
    assert front.expect(UploadReady).size == 6 << 20
    assert (front.spool / "dataset.age").read_bytes() == sealed.read_bytes()
    assert seen[-1] == 6 << 20


def test_upload_gives_up_when_nothing_moves(
    client_of: Any, front: Any, relay: Any, tmp_path: Path
) -> None:
    sealed = tmp_path / "sealed"
    sealed.write_bytes(b"x" * 1000)
    relay.cut_up = [1] * 100
    pauses: list[float] = []
    with (
        client_of(front, relay.url, retries=4, sleep=pauses.append) as client,
        pytest.raises(UnavailableError),
    ):
        client.upload(sealed)
    assert pauses == [0.5, 1, 2, 4]
    assert relay.connections == 5


def test_upload_goes_on_in_another_client(
    client_of: Any, front: Any, relay: Any, tmp_path: Path
) -> None:
    sealed, state = tmp_path / "sealed", tmp_path / "state"
    sealed.write_bytes(os.urandom(3 << 20))
    relay.cut_up = [1_000_000]
    with client_of(front, relay.url, retries=0) as client, pytest.raises(UnavailableError):
        client.upload(sealed, state=state)
    assert state.stat().st_mode & 0o777 == 0o600
    seen: list[int] = []
    with client_of(front, relay.url) as client:
        client.upload(sealed, state=state, progress=seen.append)
    assert 500_000 < seen[0] < 1_000_000  # not from the beginning
    assert not state.exists()
    assert (front.spool / "dataset.age").read_bytes() == sealed.read_bytes()


@pytest.mark.parametrize("other", ["content", "size", "key", "garbage"])
def test_upload_of_another_file_is_not_spliced(
    client_of: Any, front: Any, relay: Any, tmp_path: Path, other: str
) -> None:
    sealed, state = tmp_path / "sealed", tmp_path / "state"
    sealed.write_bytes(os.urandom(3 << 20))
    relay.cut_up = [1_000_000]
    with client_of(front, relay.url, retries=0) as client, pytest.raises(UnavailableError):
        client.upload(sealed, state=state)
    if other == "content":
        sealed.write_bytes(os.urandom(3 << 20))
    elif other == "size":
        sealed.write_bytes(sealed.read_bytes() + b"!")
    elif other == "key":
        saved = UploadState.model_validate_json(state.read_bytes())
        state.write_text(saved.model_copy(update={"peer_spki_sha256": "0" * 64}).model_dump_json())
    else:
        state.write_bytes(b"{}")
    front_busy = client_of(front, relay.url)
    with front_busy, pytest.raises(UnavailableError) as caught:
        front_busy.upload(sealed, state=state)
    assert caught.value.code is ErrorCode.JOB_BUSY  # a new upload, not the old one
    assert "another upload is under way" in str(caught.value.hint)
    assert not (front.spool / "dataset.age").exists()


def test_upload_that_the_job_forgot_begins_anew(
    client_of: Any, front: Any, relay: Any, tmp_path: Path
) -> None:
    sealed, state = tmp_path / "sealed", tmp_path / "state"
    sealed.write_bytes(os.urandom(2 << 20))
    relay.cut_up = [1_000_000]
    with client_of(front, relay.url, retries=0) as client, pytest.raises(UnavailableError):
        client.upload(sealed, state=state)
    front.enter(Phase.AWAITING_DATASET, accept=True)  # an opening that failed: uploads begin anew
    with client_of(front, relay.url) as client:
        client.upload(sealed, state=state)
    assert (front.spool / "dataset.age").read_bytes() == sealed.read_bytes()


def test_upload_refusals(client_of: Any, start_front: Any, tmp_path: Path) -> None:
    front = start_front(exchange={"max_upload_bytes": 2048})
    sealed = tmp_path / "sealed"
    sealed.write_bytes(b"x" * 2049)

    def attempt() -> TrainerError:
        with client_of(front) as client, pytest.raises(TrainerError) as caught:
            client.upload(sealed)
        return caught.value

    front.enter(Phase.PREPARING)
    assert (attempt().code, attempt().exit_code) == (ErrorCode.WRONG_PHASE, 3)
    assert "perhaps another provider's" in str(attempt().hint)
    front.enter(Phase.AWAITING_DATASET, accept=True)
    error = attempt()
    assert isinstance(error, JobError)
    assert str(error).endswith("expected at most 2048 bytes, got 2049 bytes")
    sealed.write_bytes(b"")
    assert isinstance(attempt(), UsageError)
    sealed.unlink()
    assert attempt().code is ErrorCode.FILE_NOT_FOUND


def test_download_over_connections_that_break(
    client_of: Any, front: Any, relay: Any, tmp_path: Path
) -> None:
    content = os.urandom(6 << 20)
    digest = front.publish_result(content)
    relay.cut_down = [1_500_000, 2000, 2_000_000]
    seen: list[int] = []
    with client_of(front, relay.url) as client:
        assert (
            client.download_result(tmp_path / "result.tar.age", limit=LIMIT, progress=seen.append)
            == digest
        )
    assert (tmp_path / "result.tar.age").read_bytes() == content
    assert seen == sorted(seen)
    assert relay.connections >= 3
    assert [path.name for path in tmp_path.iterdir() if "result" in path.name] == ["result.tar.age"]


def test_download_goes_on_in_another_client(
    client_of: Any, front: Any, relay: Any, tmp_path: Path
) -> None:
    content = os.urandom(4 << 20)
    front.publish_result(content)
    relay.cut_down = [2_000_000]
    target = tmp_path / "out" / "result"
    target.parent.mkdir()
    with client_of(front, relay.url, retries=0) as client, pytest.raises(UnavailableError):
        client.download_result(target, limit=LIMIT)
    (partial,) = target.parent.iterdir()
    assert 1_000_000 < partial.stat().st_size < 2_000_000
    seen: list[int] = []
    with client_of(front, relay.url) as client:
        client.download_result(target, limit=LIMIT, progress=seen.append)
    assert seen[0] > 1_000_000
    assert target.read_bytes() == content


@pytest.mark.parametrize("direction", ["cut_up", "cut_down"])
def test_a_link_that_breaks_every_100_kb_carries_everything_once(
    client_of: Any, front: Any, relay: Any, tmp_path: Path, direction: str
) -> None:
    content, target = os.urandom(3 << 20), tmp_path / "result"
    setattr(relay, direction, [100_000] * 100)
    pauses: list[float] = []
    with client_of(front, relay.url, sleep=pauses.append) as client:
        if direction == "cut_up":
            target.write_bytes(content)
            client.upload(target)
        else:
            front.publish_result(content)
            client.download_result(target, limit=LIMIT)
    assert (
        front.spool / "dataset.age" if direction == "cut_up" else target
    ).read_bytes() == content
    # Each connection spends some of its bytes on the handshake and on what TLS did not finish.
    assert relay.connections <= 1.4 * len(content) / 100_000
    assert sum(pauses) <= 0.1 * len(pauses)


def test_download_of_another_result_begins_anew(client_of: Any, front: Any, tmp_path: Path) -> None:
    (tmp_path / f".result.{'0' * 64}.partial").write_bytes(b"of an earlier job")
    front.publish_result(b"sealed result")
    with client_of(front) as client:
        client.download_result(tmp_path / "result", limit=LIMIT)
    assert (tmp_path / "result").read_bytes() == b"sealed result"
    assert not list(tmp_path.glob(".result.*"))


def test_download_whose_beginning_was_changed_is_refused(
    client_of: Any, front: Any, tmp_path: Path
) -> None:
    content = os.urandom(100_000)
    digest = front.publish_result(content)
    (tmp_path / f".result.{digest}.partial").write_bytes(
        bytes([content[0] ^ 1]) + content[1:50_000]
    )
    with client_of(front) as client:
        with pytest.raises(SealingError) as caught:
            client.download_result(tmp_path / "result", limit=LIMIT)
        assert caught.value.code is ErrorCode.RESULT_DIGEST_MISMATCH
        assert not (tmp_path / "result").exists()
        assert client.download_result(tmp_path / "result", limit=LIMIT) == digest


def test_download_that_was_whole_already(client_of: Any, front: Any, tmp_path: Path) -> None:
    digest = front.publish_result(b"sealed")
    (tmp_path / f".result.{digest}.partial").write_bytes(b"sealed")
    with client_of(front) as client:
        assert client.download_result(tmp_path / "result", limit=LIMIT) == digest
    assert (tmp_path / "result").read_bytes() == b"sealed"
