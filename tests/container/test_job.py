"""A whole job in the container, from the compose file that configs/ ships."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.container.conftest import BuiltImage
from tests.container.engine import ROOT, Engine, terminate
from tests.container.job_files import MODEL_IN_CONTAINER, write_spec

CANARY = "xylophonequartz"
"""In every row of the dataset, and nowhere else."""

PROJECT = "trainer-test"
SECONDS = 300.0
CAPABILITIES = sum(1 << bit for bit in (0, 1, 5, 6, 7))
"""CHOWN, DAC_OVERRIDE, KILL, SETGID, SETUID, as capabilities(7) numbers them."""


@dataclass(frozen=True)
class DeployedJob:
    """The job's container, and what its operator and its provider have."""

    engine: Engine
    folder: Path
    container: str

    def trainer(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a command outside the container, in the network where its port is published."""
        command = [sys.executable, "-m", "trainer", *map(str, arguments)]
        environment = {**os.environ, "COLUMNS": "160", "NO_COLOR": "1"}
        done = subprocess.run(
            self.engine.in_network(*command),
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done

    def events(self) -> list[dict[str, Any]]:
        """What the container printed: one JSON object per line, nothing else."""
        return [
            json.loads(line) for line in self.engine.docker("logs", self.container).splitlines()
        ]

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds; the container must run until then."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            state = self.engine.inspect(self.container)["State"]
            assert state["Running"], (state, self.events()[-3:])
            assert time.monotonic() < deadline, self.events()[-3:]
            time.sleep(0.3)

    def is_in_phase(self, phase: str) -> bool:
        """Whether the job has announced this phase."""
        return any(event.get("phase") == phase for event in self.events())


def write_rows(path: Path) -> None:
    conversations = (
        [
            {"role": "user", "content": f"What is {number}?"},
            {"role": "assistant", "content": f"The {CANARY} number {number}, as everybody knows."},
        ]
        for number in range(40)
    )
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in conversations))


def write_compose(path: Path, *, image: str, socket: Path, model: Path) -> None:
    """Write the shipped compose file with what an operator fills in, the model, and less memory."""
    text = (ROOT / "configs" / "docker-compose-cpu.yaml").read_text("utf-8")
    for old, new in (
        (f"confidential-trainer@sha256:{'0' * 64}", image),
        ("- /var/run/dstack.sock:", f"- {model}:{MODEL_IN_CONTAINER}:ro\n      - {socket}:"),
        ("size=6g", "size=1g"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text)


@pytest.fixture(scope="module")
def job(
    cpu_image: BuiltImage, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DeployedJob]:
    """A job that waits for its dataset; the operator's commands are those of docs/deploy.md."""
    engine, folder = cpu_image.engine, tmp_path_factory.mktemp("job")
    model = folder / "model"
    shutil.copytree(tiny_model, model)
    model.chmod(0o755)
    write_spec(
        folder / "job.yaml",
        model,
        lora={"lora_r": 4, "lora_alpha": 8},
        data={"max_length": 256, "test_split_size": 0.2},
        train={"learning_rate": 0.01, "max_steps": 4, "bf16": False},
        exchange={"host": "0.0.0.0", "port": 8443, "linger_seconds": 60},
    )
    write_rows(folder / "train.jsonl")
    compose, socket = folder / "docker-compose.yaml", folder / "dstack.sock"
    write_compose(compose, image=cpu_image.reference, socket=socket, model=model)
    app_compose = folder / "app-compose.json"
    run = [sys.executable, "-m", "trainer"]
    render = ["job", "render", folder / "job.yaml", compose, "--write-compose", "-o", app_compose]
    subprocess.run([*run, *map(str, render)], check=True, capture_output=True)
    simulate = [
        "simulate",
        "--socket",
        socket,
        "--state",
        folder / "state",
        "--app-compose",
        app_compose,
    ]
    with (folder / "simulate.log").open("wb") as log:
        simulator = subprocess.Popen([*run, *map(str, simulate)], stdout=log, stderr=log)
    up = ("compose", "--project-name", PROJECT, "--file", str(compose))
    try:
        while not (socket.exists() and (folder / "state" / "measurements.json").exists()):
            assert simulator.poll() is None, (folder / "simulate.log").read_text()
            time.sleep(0.1)
        engine.docker(*up, "up", "--detach")
        container = engine.docker(*up, "ps", "--all", "--quiet").strip()
        deployed = DeployedJob(engine, folder, container)
        deployed.wait_for(lambda: deployed.is_in_phase("awaiting-dataset"))
        yield deployed
        engine.docker(*up, "down", "--volumes", "--timeout", "5")
    finally:
        terminate(simulator)


def test_its_processes_are_three_users_and_only_the_supervisor_has_capabilities(
    job: DeployedJob,
) -> None:
    job.wait_for(
        lambda: len({status["Uid"] for status in job.engine.process_status(job.container)}) == 3
    )
    statuses = job.engine.process_status(job.container)
    assert {status["Uid"].split()[0] for status in statuses} == {"0", "901", "902"}
    for status in statuses:
        held, allowed = int(status["CapEff"], 16), int(status["CapBnd"], 16)
        assert allowed & ~CAPABILITIES == 0, status["Name"]
        assert status["Uid"].startswith("0\t") or held == 0, status["Name"]
        assert status["NoNewPrivs"] == "1", status["Name"]
        assert status["Seccomp"] == "2", status["Name"]


def test_the_engine_confines_it_as_the_compose_file_says(job: DeployedJob) -> None:
    found = job.engine.inspect(job.container)
    assert found["HostConfig"]["ReadonlyRootfs"] is True
    assert found["HostConfig"]["Privileged"] is False
    assert found["HostConfig"]["CapDrop"] == ["ALL"]
    assert set(found["HostConfig"]["Tmpfs"]) == {"/run/trainer", "/tmp"}
    assert found["HostConfig"]["RestartPolicy"]["Name"] == "no"
    # The job spec arrives byte for byte: its digest is what the claims name.
    (spec,) = (value for value in found["Config"]["Env"] if value.startswith("TRAINER_JOB="))
    assert spec == "TRAINER_JOB=" + (job.folder / "job.yaml").read_text()


def test_a_provider_gets_a_checked_adapter_and_the_operator_ciphertext(job: DeployedJob) -> None:
    state, result = job.folder / "state", job.folder / "result"
    job.trainer("keygen", "-o", "provider.key")
    job.trainer(
        "policy", "init", "--app-compose", "app-compose.json", "--job", "job.yaml",
        "--trust-root", state / "root.pem", "--collateral", state / "collateral.json",
        "--measurements", state / "measurements.json", "--no-gpu", "-o", "policy.yaml",
    )  # fmt: skip

    submitted = job.trainer(
        "submit", "train.jsonl", "--job-url", "https://127.0.0.1:8443", "--policy", "policy.yaml",
        "-i", "provider.key", "-o", "result", "--json",
    )  # fmt: skip

    assert job.engine.docker("wait", job.container) == "0\n"
    printed = json.loads(submitted.stdout.splitlines()[-1])
    assert set(printed["checks"].values()) <= {"affirmed", "not-demanded", "skipped"}
    assert printed["summary"]["eval_loss_after"] < printed["summary"]["eval_loss_before"]
    assert (result / "adapter" / "adapter_model.safetensors").stat().st_size > 0

    logs = job.engine.docker("logs", job.container)
    assert CANARY not in logs
    assert job.events()[-1]["event"] != "failed"
    image = job.engine.inspect(job.container)["Config"]["Image"]
    search = f"find . -type f | wc -l; grep --recursive --files-with-matches {CANARY} . || true"
    seen = job.engine.docker(
        "run", "--rm", "--network", "none", "--volumes-from", f"{job.container}:ro",
        "--workdir", "/var/lib/trainer", "--entrypoint", "sh", image, "-c", search,
    )  # fmt: skip
    assert int(seen) > 0, "a number of files, and no name of one with the canary"
