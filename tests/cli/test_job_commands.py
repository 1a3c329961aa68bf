"""`trainer job init`, `pin` and `render` as an operator calls them; `pin` against a stand-in for a model hub."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from trainer.cli.app import run_command_line
from trainer.deployment import (
    DeploymentProfile,
    read_embedded_job,
    render_app_compose,
    render_compose,
)
from trainer.errors import ExitCode
from trainer.spec import read_job_spec

CONFIGS = Path(__file__).parents[2] / "configs"
JOB, COMPOSE = CONFIGS / "llama-3.2-3b-unsloth.yaml", CONFIGS / "docker-compose.yaml"
COMMIT = "ab" * 20
LARGE = {"model.safetensors": b"weights" * 1000, "tokenizer.json": b"{}" * 5000}
SMALL = {
    "config.json": b'{"a":1}',
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "README.md": b"# about",
    "pytorch_model.bin": b"a pickle",
}


# render


@pytest.mark.parametrize("profile", DeploymentProfile)
def test_render_writes_what_the_vm_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], profile: DeploymentProfile
) -> None:
    output = tmp_path / "app-compose.json"
    code = run_command_line(
        ["job", "render", str(JOB), str(COMPOSE), "--profile", profile, "-o", str(output), "--json"]
    )
    expected = render_app_compose(render_compose(COMPOSE.read_text(), JOB.read_text()), profile)
    assert (code, output.read_bytes()) == (0, expected)
    assert json.loads(capsys.readouterr().out) == {
        "app_compose": str(output),
        "compose_sha256": hashlib.sha256(expected).hexdigest(),
        "job_spec_sha256": read_job_spec(JOB).sha256(),
    }


def test_render_without_output_prints_the_exact_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["job", "render", str(JOB), str(COMPOSE)]) == 0
    assert capsys.readouterr().out == render_app_compose(COMPOSE.read_text()).decode()


def test_another_job_is_another_measured_text(tmp_path: Path) -> None:
    compose, other, output = tmp_path / "compose.yaml", tmp_path / "job.yaml", tmp_path / "app.json"
    shutil.copy(COMPOSE, compose)
    other.write_text(JOB.read_text().replace("seed: 42", "seed: 43"))
    assert (
        run_command_line(
            ["job", "render", str(other), str(compose), "--write-compose", "-o", str(output)]
        )
        == 0
    )
    assert read_embedded_job(compose.read_text()) == other.read_text()
    assert json.loads(output.read_bytes())["docker_compose_file"] == compose.read_text()
    assert (
        run_command_line(["job", "render", str(other), str(compose), "--check", str(output)]) == 0
    )
    assert run_command_line(["job", "render", str(JOB), str(compose), "--check", str(output)]) == 4
    kms = ["job", "render", str(other), str(compose), "--profile", "kms", "--check", str(output)]
    assert run_command_line(kms) == 4


@pytest.mark.parametrize(
    "options",
    [
        ["--key-provider-id", "ab" * 32],
        ["--profile", "kms", "--key-provider-id", "xyz"],
        ["--profile", "kms", "--key-provider-id", ""],
        ["-o", "a", "--check", "b"],
        ["--json"],
        ["--profile", "open"],
    ],
)
def test_render_refuses_options_that_do_not_fit(options: list[str]) -> None:
    assert run_command_line(["job", "render", str(JOB), str(COMPOSE), *options]) == ExitCode.USAGE


def test_render_refuses_what_is_no_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB.read_text().replace("lora_r:", "rank:"))
    assert run_command_line(["job", "render", str(job), str(COMPOSE)]) == ExitCode.USAGE
    assert "unknown key 'lora.rank'" in capsys.readouterr().err


def test_the_key_service_is_named(tmp_path: Path) -> None:
    output = tmp_path / "app.json"
    options = ["--profile", "kms", "--key-provider-id", "0a" * 65, "-o", str(output)]
    assert run_command_line(["job", "render", str(JOB), str(COMPOSE), *options]) == 0
    assert json.loads(output.read_bytes())["key_provider_id"] == "0a" * 65


# init


ROWS: dict[str, dict[str, Any]] = {
    "messages": {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    },
    "alpaca": {"instruction": "q", "output": "a"},
    "prompt_completion": {"prompt": "q", "completion": "a"},
    "preference": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "text": {"text": "a"},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
}


@pytest.mark.parametrize("kind", ROWS)
def test_init_recognises_the_kind_of_rows(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = tmp_path / "train.jsonl", tmp_path / "job.yaml"
    data.write_text(json.dumps(ROWS[kind]) + "\n")
    assert (
        run_command_line(["job", "init", "org/name", str(data), "-o", str(output), "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["format"] == kind
    assert read_job_spec(output).data.format == kind


def test_init_writes_the_text_of_a_chat_template(tmp_path: Path) -> None:
    data, template, output = (tmp_path / name for name in ("train.jsonl", "mine.jinja", "job.yaml"))
    data.write_text(json.dumps(ROWS["messages"]) + "\n")
    template.write_text("{% for m in messages %}\n  {{ m.content }}\n{% endfor %}\n")
    command = [
        "job",
        "init",
        "org/name",
        str(data),
        "-o",
        str(output),
        "--chat-template",
        str(template),
    ]
    assert run_command_line(command) == 0
    assert read_job_spec(output).data.chat_template == template.read_text()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", '{"a": "b"}\n'),
        ("train.jsonl", ""),
        ("train.exe", "x"),
        ("train.jsonl", "{"),
    ],
)
def test_init_refuses_rows_of_no_kind(tmp_path: Path, name: str, content: str) -> None:
    data, output = tmp_path / name, tmp_path / "job.yaml"
    data.write_text(content)
    assert (
        run_command_line(["job", "init", "org/name", str(data), "-o", str(output)])
        == ExitCode.USAGE
    )
    assert not output.exists()


def test_init_overwrites_nothing_and_refuses_names_that_no_spec_may_have(tmp_path: Path) -> None:
    data, output = tmp_path / "train.jsonl", tmp_path / "job.yaml"
    data.write_text(json.dumps(ROWS["text"]) + "\n")
    assert (
        run_command_line(["job", "init", "not a name", str(data), "-o", str(output)])
        == ExitCode.USAGE
    )
    assert not output.exists()
    output.write_text("mine")
    assert (
        run_command_line(["job", "init", "org/name", str(data), "-o", str(output)])
        == ExitCode.USAGE
    )
    assert output.read_text() == "mine"


def test_init_for_this_machine_pins_the_model_and_writes_what_is_measured(
    tmp_path: Path,
    model_directory: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my rows.jsonl").write_text(json.dumps(ROWS["messages"]) + "\n")
    command = ["job", "init", "./model", "my rows.jsonl", "--local"]
    assert run_command_line(command) == 0
    spec = read_job_spec(Path("job.yaml"))
    assert dict(spec.model.model_file_sha256) == LOADED
    assert spec.exchange.host == "127.0.0.1"
    compose = json.loads(Path("app-compose.json").read_bytes())["docker_compose_file"]
    assert read_embedded_job(compose) == Path("job.yaml").read_text()
    assert "trainer submit 'my rows.jsonl' --job-url exchange" in capsys.readouterr().out
    Path("job.yaml").unlink()
    assert run_command_line(command) == ExitCode.USAGE, "app-compose.json is never overwritten"
    assert not Path("job.yaml").exists()


# pin


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


LOADED = {
    name: sha256(data)
    for name, data in {**LARGE, **SMALL}.items()
    if name not in {"README.md", "pytorch_model.bin"}
}


class Hub(BaseHTTPRequestHandler):
    """Answers as a model hub does about one model at one commit; large files are named in the metadata alone."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)  # type: ignore[attr-defined]
        if path in {
            f"/api/models/org/name/revision/{COMMIT}",
            "/api/models/org/name",
            "/api/models/org/name/revision/v1",
        }:
            self.send(json.dumps(self.metadata()).encode(), body=body)
        elif (name := path.removeprefix(f"/org/name/resolve/{COMMIT}/")) in SMALL:
            self.send(SMALL[name], body=body)
        else:
            self.send(b"", body=body, status=404)

    def metadata(self) -> dict[str, Any]:
        small: list[dict[str, Any]] = [
            {"rfilename": name, "size": len(data)} for name, data in SMALL.items()
        ]
        large = [
            {
                "rfilename": name,
                "size": len(data),
                "lfs": {"sha256": sha256(data), "size": len(data), "pointerSize": 1},
            }
            for name, data in LARGE.items()
        ]
        return {"id": "org/name", "sha": COMMIT, "siblings": small + large}

    def send(self, data: bytes, *, body: bool, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{sha256(data)[:40]}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Stays silent."""


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB.read_text().replace("unsloth/Llama-3.2-3B-Instruct", "org/name"))
    return path


def pin(hub: ThreadingHTTPServer, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Calls `trainer job pin` in a process of its own: the hub's client reads its environment when imported."""
    endpoint = f"http://127.0.0.1:{hub.server_address[1]}"
    return subprocess.run(
        [sys.executable, "-m", "trainer", "job", "pin", *map(str, arguments)],
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_must_not_be_sent"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--revision", "v1")])
def test_pin_fills_in_every_file_and_downloads_small_ones_alone(
    hub: ThreadingHTTPServer, job: Path, options: tuple[str, ...]
) -> None:
    done = pin(hub, job, *options, "--json")
    assert done.returncode == 0, done.stderr
    model = read_job_spec(job).model
    assert (model.model_revision, dict(model.model_file_sha256)) == (COMMIT, LOADED)
    assert json.loads(done.stdout)["model_file_sha256"] == LOADED
    asked = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}  # type: ignore[attr-defined]
    assert asked == set(LOADED) - set(LARGE)
    assert "# FILL IN" not in job.read_text()
    assert "# Llama 3.2 3B Instruct, LoRA, with Unsloth, on one H100 or H200." in job.read_text()


@pytest.mark.slow
def test_pin_against_a_hub_without_the_model_changes_nothing(
    hub: ThreadingHTTPServer, job: Path
) -> None:
    job.write_text(job.read_text().replace("org/name", "org/other"))
    before = job.read_bytes()
    done = pin(hub, job)
    assert done.returncode == ExitCode.UNAVAILABLE, done.stderr
    assert "HF_ENDPOINT" in done.stderr
    assert job.read_bytes() == before


@pytest.fixture
def model_directory(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    for name, data in {**LARGE, **SMALL}.items():
        (directory / name).write_bytes(data)
    return directory


def test_pin_from_a_directory(job: Path, model_directory: Path, tmp_path: Path) -> None:
    output = tmp_path / "pinned.yaml"
    arguments = [
        "job",
        "pin",
        str(job),
        "--from",
        str(model_directory),
        "-o",
        str(output),
        "--quiet",
    ]
    assert run_command_line(arguments) == ExitCode.USAGE, "zeros are no commit"
    assert run_command_line([*arguments, "--revision", COMMIT]) == 0
    model = read_job_spec(output).model
    assert (model.model_revision, dict(model.model_file_sha256)) == (COMMIT, LOADED)
    shutil.move(output, job)
    assert run_command_line(arguments) == 0, "the commit that is written already"
    assert read_job_spec(output).model.model_revision == COMMIT


def test_pin_of_a_local_model(job: Path, model_directory: Path) -> None:
    job.write_text(
        job.read_text()
        .replace("org/name", "./model")
        .replace('  model_revision: "' + "0" * 40, "#")
    )
    assert run_command_line(["job", "pin", str(job)]) == 0
    model = read_job_spec(job).model
    assert (model.model_revision, dict(model.model_file_sha256)) == (None, LOADED)
    assert model_directory.is_dir()


def test_pin_lists_the_chat_template_that_the_job_names(job: Path, model_directory: Path) -> None:
    (model_directory / "mine.jinja").write_text("{{ messages }}")
    job.write_text(
        job.read_text().replace("\ndata:\n", "\ndata:\n  chat_template_path: mine.jinja\n")
    )
    assert (
        run_command_line(
            ["job", "pin", str(job), "--from", str(model_directory), "--revision", COMMIT]
        )
        == 0
    )
    spec = read_job_spec(job)
    assert spec.data.chat_template_path in spec.model.model_file_sha256


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_pin_refuses_a_model_without_safe_weights(
    job: Path, model_directory: Path, missing: str
) -> None:
    (model_directory / missing).unlink()
    before = job.read_bytes()
    code = run_command_line(
        ["job", "pin", str(job), "--from", str(model_directory), "--revision", COMMIT]
    )
    assert (code, job.read_bytes()) == (ExitCode.USAGE, before)
