"""Everything that configs/ ships starts, as it is: only the placeholder of the image is filled in.

The guest agent is a simulated one, at the place where dstack has it. A job that fetches its base model (phase
`preparing`) has shown that compose and the engine accept the file, that the process in the container has read its
job spec, and that the job's processes are confined and have keys.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.container.conftest import BuiltImage
from tests.container.engine import ROOT, Engine, EngineError, terminate
from trainer.spec import from_compose, parse_job_spec

CONFIGS = ROOT / "configs"
PROJECT = "trainer-shipped"
PLACEHOLDER = f"confidential-trainer@sha256:{'0' * 64}"


def shipped_text(name: str) -> str:
    """Returns the docker-compose text of a shipped file; that of app-compose.json is inside."""
    text = (CONFIGS / name).read_text(encoding="utf-8")
    return str(json.loads(text)["docker_compose_file"]) if name.endswith(".json") else text


class Deployment:
    """One compose file, started in the engine."""

    def __init__(self, image: BuiltImage, folder: Path) -> None:
        self.image = image
        self.file = folder / "docker-compose.yaml"
        self._command = ("compose", "--project-name", PROJECT, "--file", str(self.file))

    def up(self, text: str) -> list[dict[str, Any]]:
        """Starts a compose text, waits until its job prepares or ends, and returns its public events."""
        assert text.count(PLACEHOLDER) == 1
        self.file.write_text(text.replace(PLACEHOLDER, self.image.reference), encoding="utf-8")
        engine = self.image.engine
        engine.docker(*self._command, "up", "--detach")
        container = engine.docker(*self._command, "ps", "--all", "--quiet").strip()
        deadline = time.monotonic() + 120
        while True:
            events = [json.loads(line) for line in engine.docker("logs", container).splitlines()]
            is_running = engine.inspect(container)["State"]["Running"]
            if not is_running or any(event.get("phase") == "preparing" for event in events):
                return events
            assert time.monotonic() < deadline, events
            time.sleep(0.2)

    def down(self) -> None:
        """Removes what `up` made."""
        if self.file.exists():
            self.image.engine.docker(*self._command, "down", "--volumes", "--timeout", "5")


@pytest.fixture(scope="module")
def guest_agent(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A simulated guest agent at the path that the shipped files mount."""
    folder = tmp_path_factory.mktemp("agent")
    socket = folder / "dstack.sock"
    command = [
        sys.executable,
        "-m",
        "trainer",
        "simulate",
        "--socket",
        str(socket),
        "--state",
        str(folder / "state"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
    try:
        while not socket.exists():
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        engine.link("/var/run/dstack.sock", socket)
        yield
    finally:
        terminate(process)


@pytest.fixture
def deployment(cpu_image: BuiltImage, guest_agent: None, tmp_path: Path) -> Iterator[Deployment]:
    started = Deployment(cpu_image, tmp_path)
    yield started
    started.down()


def without_gpu(text: str) -> str:
    """Returns a compose text without the reservation of GPUs, which this engine does not have."""
    start = text.index("    deploy:\n")
    end = text.index("    read_only:", start)
    return text[:start] + text[end:]


def require_started(events: list[dict[str, Any]], text: str) -> None:
    """Checks that the job in the container read the job spec that the text has, and began."""
    environment = yaml.safe_load(text)["services"]["trainer"]["environment"]
    job = from_compose(environment["TRAINER_JOB"])
    assert job is not None
    assert events[0]["event"] == "spec"
    assert events[0]["sha256"] == parse_job_spec(job.encode()).sha256()
    assert events[1] == {**events[1], "event": "phase", "phase": "starting"}
    assert any(event["event"] == "listening" for event in events), (
        "the sandbox stands and the front serves"
    )
    assert any(event.get("phase") == "preparing" for event in events), (
        "it has keys, and fetches its base model"
    )


def test_the_compose_file_for_a_cpu_starts_as_shipped(deployment: Deployment) -> None:
    text = shipped_text("docker-compose-cpu.yaml")
    require_started(deployment.up(text), text)


@pytest.mark.parametrize(
    "name", ["docker-compose.yaml", "app-compose-sealed.json", "app-compose-kms.json"]
)
def test_the_files_for_a_gpu_start_but_for_their_reservation(
    name: str, deployment: Deployment
) -> None:
    text = without_gpu(shipped_text(name))
    require_started(deployment.up(text), text)


def test_the_reservation_of_a_gpu_is_refused_in_the_engines_own_words(
    deployment: Deployment,
) -> None:
    with pytest.raises(EngineError, match="could not select device driver"):
        deployment.up(shipped_text("docker-compose.yaml"))


def test_an_init_process_does_not_matter(deployment: Deployment) -> None:
    """Without one the job's first process is the container's, and reaps what it inherits."""
    text = shipped_text("docker-compose-cpu.yaml")
    assert text.count("init: true") == 1
    require_started(deployment.up(text.replace("init: true", "init: false")), text)


def test_every_job_spec_is_one_that_the_container_accepts(cpu_image: BuiltImage) -> None:
    specs = sorted(
        path for path in CONFIGS.glob("*.yaml") if not path.name.startswith("docker-compose")
    )
    assert len(specs) >= 4
    for path in specs:
        text = path.read_text(encoding="utf-8")
        read = (
            "import json, os; from trainer.spec import read_job_variable; "
            "print(json.dumps(read_job_variable(os.environ).sha256()))"
        )
        options = ("--env", f"TRAINER_JOB={text}")
        digest = json.loads(cpu_image.run("python", "-c", read, options=options))
        assert digest == parse_job_spec(text.encode()).sha256(), path.name


def test_a_path_and_the_variable_are_refused(cpu_image: BuiltImage) -> None:
    with pytest.raises(EngineError, match="given twice"):
        cpu_image.run(
            "trainer", "run", "/etc/trainer/job.yaml", options=("--env", "TRAINER_JOB=version: 1")
        )
