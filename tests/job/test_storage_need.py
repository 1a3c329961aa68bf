"""What a job will write, compared with the room there is, before it trains."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from trainer.errors import RESUMABLE, ErrorCode, JobError
from trainer.ipc.worker_messages import OutputSize
from trainer.job.storage_need import needed_bytes, require_room
from trainer.spec import JobSpec, parse_job_spec

OTHER = 32 << 20


def spec(train: str = "{}") -> JobSpec:
    return parse_job_spec(
        f"""
version: 1
model:
  model_name_or_path: ./m
  model_file_sha256: {{config.json: {"a" * 64}, model.safetensors: {"b" * 64}}}
train: {train}
""".encode()
    )


@pytest.mark.parametrize(
    ("train", "checkpoints"),
    [("{}", 1), ("{save_steps: 5}", 3), ("{save_steps: 5, save_total_limit: 7}", 8)],
)
def test_need(train: str, checkpoints: int) -> None:
    size = OutputSize(trained_parameters=1000, copied_bytes=50_000)
    content = checkpoints * 16_000 + 4_000 + 50_000
    assert needed_bytes(spec(train), size) == content + content // 8 + OTHER


def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = OTHER + 20 * 1000 * 9 // 8

    def volume(path: Any) -> Any:
        assert path == tmp_path
        return SimpleNamespace(f_bavail=need - 1, f_frsize=1)

    monkeypatch.setattr(os, "statvfs", volume)
    size = OutputSize(trained_parameters=1000, copied_bytes=0)
    require_room(tmp_path, spec(), size, 1)
    with pytest.raises(JobError) as caught:
        require_room(tmp_path, spec(), size, 0)
    error = caught.value
    assert error.code is ErrorCode.STORAGE_FULL
    assert error.code in RESUMABLE
    assert (error.expected, error.found) == (f"{need} bytes", f"{need - 1} bytes")
    assert "room for 1 bytes more" in str(error.hint)


@pytest.mark.parametrize(
    "sizes", [(-1, 0), (0, -1), (10**12 + 1, 0), (0, 2**50 + 1), (1.5, 0), (0, True)]
)
def test_the_worker_s_numbers_are_bounded(sizes: tuple[Any, Any]) -> None:
    with pytest.raises(ValidationError):
        OutputSize(trained_parameters=sizes[0], copied_bytes=sizes[1])
