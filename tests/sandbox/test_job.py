"""A whole job of three users, by network and by files: what the walls stand around must still work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.sandbox.conftest import SHM, as_deployed, skip_unless_possible
from trainer.encoding import file_sha256
from trainer.job.sandbox_plans import FRONT, WORKER
from trainer.sandbox import landlock

pytestmark = pytest.mark.slow

Command = Callable[..., subprocess.CompletedProcess[str]]
DEMANDED = ["separate_users", "worker_no_network", "front_no_outgoing", "worker_no_programs"]


@pytest.fixture
def place(open_folder: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=open_folder))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def workspace() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="trainer-test-", dir=SHM))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def trainer(open_python: list[str], place: Path) -> Command:
    """`trainer("verify", …)`, run by the interpreter that other users can run."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [*open_python, "-m", "trainer", *map(str, arguments)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
            cwd="/",
            env=environment(place),
        )

    return run


def environment(place: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(place), "OMP_NUM_THREADS": "2"}


@pytest.fixture
def agent(open_python: list[str], place: Path) -> Iterator[Path]:
    """A simulated guest agent; its socket."""
    (place / "app-compose.json").write_bytes(
        b'{"name":"sandbox","docker_compose_file":"services: {}"}'
    )
    paths = (
        "--socket",
        place / "agent",
        "--state",
        place / "state",
        "--app-compose",
        place / "app-compose.json",
    )
    command = [*open_python, "-m", "trainer", "simulate", *map(str, paths)]
    with subprocess.Popen(
        command, cwd="/", env=environment(place), stdout=subprocess.DEVNULL
    ) as process:
        wait_for(
            lambda: (place / "agent").exists() and (place / "state" / "measurements.json").exists()
        )
        yield place / "agent"
        process.terminate()


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not get there in time"
        time.sleep(0.05)


def write_spec(place: Path, tiny_model: Path, processes: int) -> Path:
    files = sorted(tiny_model.iterdir())
    document = {
        "version": 1,
        "model": {
            "model_name_or_path": str(tiny_model),
            "model_file_sha256": {file.name: file_sha256(file) for file in files},
            "dtype": "float32",
        },
        "lora": {"lora_r": 4, "lora_alpha": 8},
        "data": {"max_length": 256, "test_split_size": 0.2},
        "train": {
            "engine": "transformers",
            "max_steps": 3,
            "bf16": False,
            "num_processes": processes,
        },
        "exchange": {"host": "127.0.0.1", "port": 0, "linger_seconds": 60},
        "tee": {"sandbox": DEMANDED + (["worker_files_confined"] if landlock.abi() else [])},
    }
    spec = place / "job.yaml"
    spec.write_text(yaml.safe_dump(document))
    return spec


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def phases(out: Path) -> list[object]:
    return [event.get("phase") for event in events(out)]


def users_below(pid: int) -> dict[str, int]:
    """Module of each child → its user; without workers that stand by (`-I`), which have read nothing."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            words = (entry / "cmdline").read_bytes().split(b"\0")
            user = int((entry / "status").read_text().partition("Uid:")[2].split()[0])
        except OSError:
            continue
        if parent == pid and b"-m" in words and b"-I" not in words:
            found[words[words.index(b"-m") + 1].decode()] = user
    return found


@pytest.mark.parametrize(
    ("by_files", "processes"),
    [(False, 1), (True, 1), (True, 2)],
    ids=["network", "files", "two-processes"],
)
def test_a_job_of_three_users(
    trainer: Command,
    agent: Path,
    place: Path,
    workspace: Path,
    tiny_model: Path,
    open_python: list[str],
    by_files: bool,
    processes: int,
) -> None:
    skip_unless_possible("three-users")
    spec, carried = write_spec(place, tiny_model, processes), place / "carried"
    data, out = place / "train.jsonl", place / "out"
    data.write_text(
        "".join(json.dumps({"prompt": f"q{n}", "completion": f"a{n}"}) + "\n" for n in range(20))
    )
    options = ["--guest-agent", agent, "--workspace", workspace]
    options += ["--spool" if by_files else "--ciphertext-dir", carried]
    command = [*open_python, "-m", "trainer", "run", str(spec), *map(str, options)]
    if processes == 1:  # several need a network namespace, and so CAP_SYS_ADMIN as well
        command = [*as_deployed(), *command]
    with out.open("wb") as stdout:
        job = subprocess.Popen(command, stdout=stdout, cwd="/", env=environment(place), umask=0o022)
    try:
        wait_for(lambda: "awaiting-dataset" in phases(out) or job.poll() is not None)
        assert job.poll() is None, events(out)
        assert users_below(job.pid) == {"trainer.worker": WORKER.uid, "trainer.front": FRONT.uid}
        listening = next(event for event in events(out) if event["event"] == "listening")
        where = carried if by_files else f"https://127.0.0.1:{listening['port']}"
        assert trainer("keygen", "-o", place / "key").returncode == 0
        state = place / "state"
        made = trainer(
            "policy", "init", "--app-compose", place / "app-compose.json", "--job", spec, "--no-gpu",
            "--trust-root", state / "root.pem", "--collateral", state / "collateral.json",
            "--measurements", state / "measurements.json", "-o", place / "policy.yaml",
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        submit = (
            "submit", data, "--job-url", where, "--policy", place / "policy.yaml", "-i", place / "key",
            "-o", place / "result", "--json",
        )  # fmt: skip
        # The worker of the next try is as confined, and owns its directories.
        if processes > 1 or not by_files:
            good = data.read_text()
            data.write_text(good + json.dumps({"text": "too long " * 9999}) + "\n")
            refused = trainer(*submit)
            assert "error[dataset-overlong]" in refused.stderr
            assert users_below(job.pid) == {
                "trainer.worker": WORKER.uid,
                "trainer.front": FRONT.uid,
            }
            data.write_text(good)
        done = trainer(*submit)
        assert done.returncode == 0, done.stderr
        assert job.wait(60) == 0
    finally:
        job.kill()
        job.wait(20)
    assert (place / "result" / "adapter" / "adapter_model.safetensors").stat().st_size > 0
    assert list(workspace.iterdir()) == []
