"""Base models from a directory, and from a stand-in hub that answers as the real one does."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from trainer.errors import ErrorCode, JobError, TrainerError, UnavailableError
from trainer.fetch.base_model import fetch_model
from trainer.ipc.fetch_messages import FetchOrder
from trainer.job.fetch_process import FetchProcess
from trainer.sandbox import landlock
from trainer.sandbox.plan import Role, SandboxPlan
from trainer.spec import ModelSection

REVISION = "0123456789abcdef" * 2 + "01234567"
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
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    for name, content in {**FILES, "pytorch_model.bin": b"a pickle", "modeling.py": b"code"}.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content)
    return tmp_path


def test_only_the_listed_files_come(local: Path, into: Path) -> None:
    fetch_model(section("./model"), local, into)
    assert tree(into) == FILES
    assert sorted(path.name for path in into.iterdir()) == ["config.json", "model.safetensors", "tokenizer"]


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


class Hub:
    """Answers of a model hub: small files directly, large ones by a redirect to a store, ETags as there."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.cut_after: int | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, *, with_body: bool) -> None:
                hub.requests.append((self.command, self.path, dict(self.headers)))
                prefix = f"/org/model/resolve/{REVISION}/"
                stored = self.path.startswith("/store/")
                name = self.path.removeprefix("/store/" if stored else prefix)
                content = hub.files.get(name) if stored or self.path.startswith(prefix) else None
                if content is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                digest = hashlib.sha256(content).hexdigest()
                large = name.endswith(".safetensors")
                start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
                self.send_response(302 if large and not stored else 206 if start else 200)
                if large and not stored:
                    self.send_header("Location", f"http://127.0.0.1:{hub.port}/store/{name}")
                    self.send_header("X-Linked-Etag", f'"{digest}"')
                    self.send_header("X-Linked-Size", str(len(content)))
                    content = b""
                self.send_header("X-Repo-Commit", REVISION)
                self.send_header("ETag", f'"{digest[:40]}"')
                self.send_header("Content-Length", str(len(content) - start))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                if with_body and stored and hub.cut_after is not None:
                    content, hub.cut_after = content[: hub.cut_after], None
                    self.close_connection = True
                if with_body:
                    with contextlib.suppress(OSError):
                        self.wfile.write(content[start:])

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.05])
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


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
    assert {path.split("/resolve/")[1].split("/")[0] for _, path, _ in hub.requests if "/resolve/" in path} == {
        REVISION
    }
    assert all("authorization" not in map(str.lower, headers) for _, _, headers in hub.requests)
    assert not any(path.startswith(("/api/telemetry", "/api/whoami")) for _, path, _ in hub.requests)
    assert not any("pytorch_model" in path for _, path, _ in hub.requests)
    agents = {headers.get("user-agent", headers.get("User-Agent", "")) for _, _, headers in hub.requests}
    assert not any("torch" in agent for agent in agents), agents


def test_hub_from_behind_walls(hub: Hub, into: Path) -> None:
    """The child has the network, this directory, and nothing else."""
    plan = SandboxPlan(role=Role.FETCH, writable=(into,), umask=0o027)
    start(FetchOrder(model=section("org/model"), base_dir=str(into), into=str(into), plan=plan)).wait(60)
    assert tree(into) == FILES
    assert {path.stat().st_mode & 0o777 for path in into.rglob("*") if path.is_file()} == {0o640}


def test_local_directory_that_the_plan_does_not_name(local: Path, into: Path) -> None:
    if landlock.abi() == 0:
        pytest.skip("this kernel has no Landlock")
    plan = SandboxPlan(role=Role.FETCH, writable=(into,))
    with pytest.raises(JobError) as caught:
        start(FetchOrder(model=section("./model"), base_dir=str(local), into=str(into), plan=plan)).wait(60)
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
