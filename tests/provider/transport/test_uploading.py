"""What an upload counts as done: bytes that the job has confirmed, never bytes that were only sent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from trainer.errors import ErrorCode, UnavailableError
from trainer.provider.transport.pinned_http import PinnedHttpClient, RetryPolicy
from trainer.provider.transport.uploading import DatasetUploader

MIB = 1 << 20


class Job:
    """The job's end of an upload, in memory; `seconds` of a clock pass for each MiB."""

    def __init__(self, seconds: float) -> None:
        self.url, self.pin = "https://job", "ab" * 32
        self.stored = bytearray()
        self.segments: list[int] = []
        self.clock = 0.0
        self.lost_answers = 0
        self._seconds = seconds

    def fetch(self, method: str, _path: str, **_options: object) -> tuple[httpx.Headers, bytes]:
        location = {"location": f"/dataset/{'0' * 32}"}
        offset = {"upload-offset": str(len(self.stored))}
        return httpx.Headers(location if method == "POST" else offset), b""

    @contextlib.contextmanager
    def open(
        self,
        _method: str,
        _path: str,
        *,
        headers: Mapping[str, str],
        content: Iterator[bytes],
        accept: object,
    ) -> Iterator[Any]:
        assert int(headers["Upload-Offset"]) == len(self.stored)
        assert accept
        body = b"".join(content)
        self.clock += self._seconds * len(body) / MIB
        self.segments.append(len(body))
        if self.lost_answers:
            self.lost_answers -= 1
            raise UnavailableError(ErrorCode.JOB_UNREACHABLE, "the connection broke")
        self.stored += body
        yield SimpleNamespace(headers=httpx.Headers({"upload-offset": str(len(self.stored))}))


def send(job: Job, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr("trainer.provider.transport.uploading.time.monotonic", lambda: job.clock)
    seen: list[int] = []

    def progress(done: int) -> None:
        assert done == len(job.stored), "more than the job has confirmed"
        seen.append(done)

    retry_policy = RetryPolicy(sleep=lambda _: None)
    DatasetUploader(cast("PinnedHttpClient", job), retry_policy, progress, None).send(path)
    return seen


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = tmp_path / "sealed"
    path.write_bytes(bytes(40 * MIB))
    return path


def test_only_what_the_job_confirmed_counts(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(seconds=0.1)
    job.lost_answers = 2
    seen = send(job, sealed, monkeypatch)
    assert (seen[0], seen[-1]) == (0, 40 * MIB)
    assert bytes(job.stored) == sealed.read_bytes()


def test_a_slow_link_confirms_small_segments(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(seconds=2.0)
    seen = send(job, sealed, monkeypatch)
    assert max(job.segments) <= 2 * MIB
    assert len(seen) >= 20


def test_a_fast_link_has_few_segments(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(seconds=0.001)
    send(job, sealed, monkeypatch)
    assert job.segments == [MIB, 2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB, 9 * MIB]
