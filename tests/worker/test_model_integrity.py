"""The worker hashes the base model before it reads it, and sees whether it is the same one afterwards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import pinning
from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, JobError
from trainer.ipc.worker_messages import TO_WORKER, Failed, ModelReady
from trainer.spec import JobSpec
from trainer.worker.model_integrity import verify_model

FILES = {"config.json": b"{}", "sub/model.safetensors": b"weights"}
PINNED = {name: sha256_hex(content) for name, content in FILES.items()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content)
    return tmp_path / "model"


def test_the_pinned_files_are_accepted(model: Path) -> None:
    verify_model(model, PINNED).require_unchanged()


@pytest.mark.parametrize("name", FILES)
def test_other_bytes_are_refused(model: Path, name: str) -> None:
    (model / name).write_bytes(FILES[name] + b"!")
    with pytest.raises(JobError) as refused:
        verify_model(model, PINNED)
    assert (refused.value.code, refused.value.expected) == (
        ErrorCode.MODEL_DIGEST_MISMATCH,
        PINNED[name],
    )


@pytest.mark.parametrize("change", ["one more", "one less"])
def test_other_files_are_refused(model: Path, change: str) -> None:
    (model / "config.json").unlink() if change == "one less" else (model / "more.json").write_bytes(
        b"{}"
    )
    with pytest.raises(JobError, match="base model's files") as refused:
        verify_model(model, PINNED)
    assert refused.value.code is ErrorCode.MODEL_INVALID
    assert change in str(refused.value.found)


def replace_by_a_link_out_of_the_model(path: Path) -> None:
    elsewhere = path.parents[1].with_name("elsewhere")
    elsewhere.mkdir()
    path.symlink_to(path.rename(elsewhere / path.name))


def replace_the_directory_by_a_link(path: Path) -> None:
    moved = path.parent.rename(path.parents[1].with_name("elsewhere"))
    path.parent.symlink_to(moved)


def replace_by_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def add_a_linked_directory(path: Path) -> None:
    """As transformers reads further chat templates from one."""
    (path.parents[1] / "additional_chat_templates").symlink_to(path.parents[2])


@pytest.mark.parametrize(
    ("replace", "found"),
    [
        (replace_by_a_link_out_of_the_model, "lrwxrwxrwx"),
        (replace_the_directory_by_a_link, "sub"),
        (replace_by_a_fifo, "prw"),
        (add_a_linked_directory, "one more: additional_chat_templates"),
    ],
)
def test_what_is_no_regular_file_is_refused_before_it_is_read(
    model: Path, replace: Callable[[Path], None], found: str
) -> None:
    """A link has the pinned bytes when it is hashed, stays the same, and may lead to others when it is read."""
    replace(model / "sub" / "model.safetensors")
    with pytest.raises(JobError) as refused:
        verify_model(model, PINNED)
    assert refused.value.code is ErrorCode.MODEL_INVALID
    assert found in str(refused.value.found)


def replace_by_a_link(path: Path) -> None:
    moved = path.rename(path.with_name("moved"))
    path.symlink_to(moved)


def replace_by_equal_bytes(path: Path) -> None:
    path.with_name("copy").write_bytes(path.read_bytes())
    path.with_name("copy").rename(path)


def write_and_put_the_time_back(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "written to": lambda path: path.write_bytes(b"WEIGHTS"),
    "replaced by equal bytes": replace_by_equal_bytes,
    "replaced by a link": replace_by_a_link,
    "written to and its time put back": write_and_put_the_time_back,
    "removed": lambda path: path.unlink(),
    "joined by another": lambda path: path.with_name("more.json").write_bytes(b"{}"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_files_that_change_after_they_were_hashed_are_noticed(model: Path, change: str) -> None:
    path = model / "sub" / "model.safetensors"
    os.utime(path, ns=(1, 1))
    verified = verify_model(model, PINNED)
    CHANGES[change](path)
    with pytest.raises(JobError) as refused:
        verified.require_unchanged()
    assert refused.value.code is ErrorCode.MODEL_DIGEST_MISMATCH


@pytest.mark.parametrize("ahead", [None, TO_WORKER.encode(ModelReady())], ids=["plain", "ahead"])
def test_a_worker_loads_no_other_model_than_the_pinned_one(
    run_worker: Callable[..., Any],
    chat_file: Path,
    make_spec: Callable[..., JobSpec],
    tiny_model: Path,
    tmp_path: Path,
    ahead: bytes | None,
) -> None:
    """Weights that were exchanged between fetching and loading: who loads them has pins of its own."""
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    ended = run_worker(
        chat_file, pinning(make_spec(), tiny_model), model_dir=other, pins=False, ahead=ahead
    )
    (failed,) = ended.messages
    assert isinstance(failed, Failed)
    assert failed.code is ErrorCode.MODEL_DIGEST_MISMATCH
