"""Base models from a directory, and from a stand-in hub that answers as the real one does."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fetch.stand_in_hub import REVISION, Hub
from trainer.errors import ErrorCode, JobError, TrainerError, UnavailableError
from trainer.fetch.base_model import fetch_model
from trainer.ipc.fetch_messages import FetchOrder
from trainer.job.fetch_process import FetchProcess
from trainer.sandbox import landlock
from trainer.sandbox.plan import Role, SandboxPlan
from trainer.spec import ModelSection

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": bytes(range(256)) * 9000,
    "tokenizer/tokenizer.json": b"{}",
}


def digests(files: dict[str, bytes] = FILES) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def section(name: str, **changes: str) -> ModelSection:
    revision = None if name.startswith(("./", "/")) else REVISION
    return ModelSection(
        model_name_or_path=name, model_revision=revision, model_file_sha256={**digests(), **changes}
    )


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    for name, content in {
        **FILES,
        "pytorch_model.bin": b"a pickle",
        "modeling.py": b"code",
    }.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content)
    return tmp_path


def test_only_the_listed_files_come(local: Path, into: Path) -> None:
    fetch_model(section("./model"), local, into)
    assert tree(into) == FILES
    assert sorted(path.name for path in into.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer",
    ]


def test_absolute_directory(local: Path, into: Path) -> None:
    fetch_model(section(str(local / "model")), Path("/nonexistent"), into)
    assert tree(into) == FILES


def test_changed_file(local: Path, into: Path) -> None:
    (local / "model" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(JobError) as caught:
        fetch_model(section("./model"), local, into)
    error = caught.value
    assert error.code is ErrorCode.MODEL_DIGEST_MISMATCH
    assert "model.safetensors" in error.message
    assert (error.expected, error.found) == (
        digests()["model.safetensors"], hashlib.sha256(b"other weights").hexdigest(),
    )  # fmt: skip
    assert not list(into.glob("model.safetensors*"))


def test_absent_file(local: Path, into: Path) -> None:
    (local / "model" / "config.json").unlink()
    with pytest.raises(JobError) as caught:
        fetch_model(section("./model"), local, into)
    assert caught.value.code is ErrorCode.MODEL_INVALID
    assert "config.json" in caught.value.message


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    hub = Hub({**FILES, "pytorch_model.bin": b"a pickle"})
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    yield hub
    hub.close()


def start(order: FetchOrder) -> FetchProcess:
    return FetchProcess(order, environment=os.environ, log=sys.stderr.buffer)


def in_child(model: ModelSection, base: Path, into: Path, seconds: float = 60) -> None:
    start(FetchOrder(model=model, base_dir=str(base), into=str(into))).wait(seconds)


def fetch(into: Path, **changes: str) -> None:
    in_child(section("org/model", **changes), into, into)


def test_hub_at_the_exact_revision(hub: Hub, into: Path, tmp_path: Path) -> None:
    fetch(into)
    assert tree(into) == FILES
    assert not (tmp_path / "home").exists()  # no cache on a disk
    assert {
        path.split("/resolve/")[1].split("/")[0]
        for _, path, _ in hub.requests
        if "/resolve/" in path
    } == {REVISION}
    assert all("authorization" not in map(str.lower, headers) for _, _, headers in hub.requests)
    assert not any(
        path.startswith(("/api/telemetry", "/api/whoami")) for _, path, _ in hub.requests
    )
    assert not any("pytorch_model" in path for _, path, _ in hub.requests)
    agents = {
        headers.get("user-agent", headers.get("User-Agent", "")) for _, _, headers in hub.requests
    }
    assert not any("torch" in agent for agent in agents), agents


def test_hub_from_behind_walls(hub: Hub, into: Path) -> None:
    """The child has the network, this directory, and nothing else."""
    plan = SandboxPlan(role=Role.FETCH, writable=(into,), umask=0o027)
    start(
        FetchOrder(model=section("org/model"), base_dir=str(into), into=str(into), plan=plan)
    ).wait(60)
    assert tree(into) == FILES
    assert {path.stat().st_mode & 0o777 for path in into.rglob("*") if path.is_file()} == {0o640}


def test_local_directory_that_the_plan_does_not_name(local: Path, into: Path) -> None:
    if landlock.abi() == 0:
        pytest.skip("this kernel has no Landlock")
    plan = SandboxPlan(role=Role.FETCH, writable=(into,))
    with pytest.raises(JobError) as caught:
        start(
            FetchOrder(model=section("./model"), base_dir=str(local), into=str(into), plan=plan)
        ).wait(60)
    assert caught.value.code is ErrorCode.MODEL_INVALID
    assert "Permission denied" in caught.value.message


def test_hub_that_breaks_off(hub: Hub, into: Path) -> None:
    hub.cut_after = 1_000_000
    fetch(into)
    assert tree(into) == FILES


def test_hub_with_other_weights(hub: Hub, into: Path) -> None:
    hub.files["model.safetensors"] = b"other weights"
    with pytest.raises(JobError) as caught:
        fetch(into)
    assert caught.value.code is ErrorCode.MODEL_DIGEST_MISMATCH
    assert caught.value.found == hashlib.sha256(b"other weights").hexdigest()
    assert not list(into.glob("model.safetensors*"))
    assert not (into / ".fetching").exists()


def test_hub_without_a_file(hub: Hub, into: Path) -> None:
    del hub.files["config.json"]
    with pytest.raises(UnavailableError) as caught:
        fetch(into)
    assert caught.value.code is ErrorCode.MODEL_UNAVAILABLE
    assert "config.json" in caught.value.message


def test_local_in_the_child(local: Path, into: Path) -> None:
    in_child(section("./model"), local, into)
    assert tree(into) == FILES


def test_child_that_takes_too_long(local: Path, into: Path) -> None:
    with pytest.raises(TrainerError) as caught:
        in_child(section("./model"), local, into, 0.01)
    assert caught.value.code is ErrorCode.TIMEOUT


def test_what_was_begun_is_waited_for(local: Path, into: Path) -> None:
    fetch = start(FetchOrder(model=section("./model"), base_dir=str(local), into=str(into)))
    fetch.begin()
    fetch.begin()
    fetch.wait(60)
    assert (into / "config.json").exists()
