"""The real processes: a simulated guest agent, jobs, and the provider's commands, with a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.end_to_end.canary_places import family
from tests.fork_server import ROOT, ForkedProcess, ForkServer
from trainer.deployment import CLEAN_START
from trainer.encoding import file_sha256
from trainer.provider import read_identity_file

SHM = Path("/dev/shm")
Process = subprocess.Popen[bytes] | ForkedProcess
CANARY = "xylophonequartz"
"""In every row of the tests' dataset, and nowhere else."""

START_SECONDS = 90.0
_SHOWN_OUTPUT = 20_000


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The object on the last line of stdout."""
        value = json.loads(self.out.splitlines()[-1])
        assert isinstance(value, dict)
        return value


def environment(**extra: str) -> dict[str, str]:
    """A terminal's environment without what only this machine has set."""
    return {**os.environ, "COLUMNS": "160", "NO_COLOR": "1", "OMP_NUM_THREADS": "1", **extra}


@pytest.fixture(scope="session")
def trainer(
    tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer
) -> Callable[..., Ran]:
    """Run a command in a process of its own, which a process with its imports forks."""
    folder = tmp_path_factory.mktemp("commands")
    variables = environment(XDG_CACHE_HOME=str(folder / "cache"))

    def run(*arguments: object, cwd: Path = ROOT, timeout: float = 240) -> Ran:
        out, err = folder / "out", folder / "err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = fork_server.start(
                "trainer",
                [str(argument) for argument in arguments],
                {1: stdout.fileno(), 2: stderr.fileno()},
                environment=variables,
                directory=cwd,
            )
        try:
            code = process.wait(timeout)
        except TimeoutError:
            process.send_signal(signal.SIGABRT)  # which has it write where each of its threads is
            with suppress(TimeoutError):
                process.wait(5)
            process.kill()
            pytest.fail(
                f"`trainer {arguments[0]}` runs for {timeout} s\n{out.read_text()}\n{err.read_text()}"
            )
        return Ran(code, out.read_text(), err.read_text())

    return run


@pytest.fixture(scope="session")
def started_trainer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ran]:
    """Run a command as a person would, interpreter and all: `trainer("verify", url, "--policy", policy)`."""
    cache = tmp_path_factory.mktemp("cache")

    def run(*arguments: object, cwd: Path = ROOT, timeout: float = 240) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "trainer", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            timeout=timeout,
            env=environment(XDG_CACHE_HOME=str(cache)),
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@contextmanager
def command_beside(told: Path, *arguments: str) -> Iterator[Callable[[], str]]:
    """Runs a command, as a person would, while the block goes on; yields `end()`.

    `end()` waits until it has ended well, and returns what it told. One that takes too long writes where each of
    its threads is.
    """
    with told.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "trainer", *arguments],
            stdout=output,
            stderr=output,
        )

    def end() -> str:
        try:
            code = process.wait(240)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            code = process.wait(20)
        assert code == 0, f"`trainer {arguments[0]}` ended with {code}\n{told.read_text()}"
        return told.read_text()

    try:
        yield end
    finally:
        process.kill()
        process.wait(20)


Trainer = Callable[..., Ran]


@dataclass(frozen=True)
class Agent:
    """A running simulated guest agent."""

    socket: Path
    state: Path
    app_compose: Path


@contextmanager
def simulated_agent(folder: Path, app: Mapping[str, object]) -> Iterator[Agent]:
    """A guest agent whose VM runs an app-compose.json."""
    compose = folder / "app-compose.json"
    compose.write_text(json.dumps({"name": "e2e", "docker_compose_file": "services: {}", **app}))
    found = Agent(folder / "s", folder / "state", compose)
    command = [
        "trainer",
        "simulate",
        "--socket",
        found.socket,
        "--state",
        found.state,
        "--app-compose",
        compose,
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, command)], stdout=log, stderr=log
        )
    try:
        wait_for(
            lambda: (found.state / "measurements.json").exists() and found.socket.exists(), process
        )
        yield found
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """The guest agent of the profile `sealed`: its VM makes its keys itself."""
    with simulated_agent(tmp_path_factory.mktemp("agent"), {}) as found:
        yield found


@pytest.fixture(scope="session")
def kms_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """The guest agent of the profile `kms`: its VM has the keys of a key service."""
    app = {
        "key_provider": "kms",
        "kms_enabled": True,
        "key_provider_id": "0a" * 91,
        "init_script": CLEAN_START,
    }
    with simulated_agent(tmp_path_factory.mktemp("kms-agent"), app) as found:
        yield found


def wait_for(
    condition: Callable[[], object], process: Process, seconds: float = START_SECONDS
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.poll()}"
        assert time.monotonic() < deadline, "did not get there in time"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def rows() -> str:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"What is {number}" + " indeed" * (number % 5) + "?"},
                {
                    "role": "assistant",
                    "content": f"The {CANARY} number {number}, as everybody knows.",
                },
            ]
        }
        for number in range(40)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, rows: str) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text(rows)
    return path


@pytest.fixture(scope="session")
def write_spec(tiny_model: Path) -> Callable[..., Path]:
    """`write_spec(path, train={"max_steps": 3})`: a quick job spec for the tiny model."""

    def write(path: Path, **sections: dict[str, object]) -> Path:
        document: dict[str, Any] = {
            "version": 1,
            "model": {
                "model_name_or_path": str(tiny_model),
                "model_file_sha256": {
                    file.name: file_sha256(file) for file in sorted(tiny_model.iterdir())
                },
                "dtype": "float32",
            },
            "lora": {"lora_r": 4, "lora_alpha": 8},
            "data": {"max_length": 256, "test_split_size": 0.2},
            "train": {"learning_rate": 0.01, "max_steps": 4, "bf16": False},
            "output": {"samples": 1, "sample_max_new_tokens": 8},
            "exchange": {
                "host": "127.0.0.1",
                "port": 0,
                "linger_seconds": 60,
                "max_upload_bytes": 1 << 20,
            },
        }
        for name, leaves in sections.items():
            section = document.setdefault(name, {})
            assert isinstance(section, dict)
            section.update(leaves)
        if (output := document["output"]).get("samples") == 0:
            del output["sample_max_new_tokens"]  # which means nothing then
        if "store" in (exchange := document["exchange"]):
            del exchange["host"], exchange["port"]  # nothing listens
        path.write_text(yaml.safe_dump(document))
        return path

    return write


WriteSpec = Callable[..., Path]


def grant_beside(record: Path) -> Path:
    """What `trainer seal -o dataset.age` keeps, in the directory of the attestation result."""
    return record.with_name("dataset.age.grant.json")


@dataclass
class Job:
    """A running `trainer run`."""

    process: Process
    spec: Path
    out: Path
    err: Path
    ciphertext: Path
    workspace: Path
    seen: list[dict[str, object]] = field(default_factory=list)

    @property
    def events(self) -> list[dict[str, object]]:
        """Public events so far; raises if stdout holds anything else."""
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def wait_event(self, **wanted: object) -> dict[str, object]:
        """Wait until an event with these fields came."""

        def find() -> dict[str, object] | None:
            return next((event for event in self.events if wanted.items() <= event.items()), None)

        wait_for(find, self.process)
        found = find()
        assert found is not None
        return found

    def wait_for_step(self, event: str, step: int = 1) -> int:
        """Wait until an event about this step or a later one came: some steps are not published."""

        def find() -> int | None:
            steps = (found.get("step") for found in self.events if found["event"] == event)
            return next(
                (found for found in steps if isinstance(found, int) and found >= step), None
            )

        wait_for(find, self.process)
        found = find()
        assert found is not None
        return found

    def wait_for_any(self, *phases: str) -> None:
        """Wait until the job has entered one of these phases."""
        wait_for(lambda: any(event.get("phase") in phases for event in self.events), self.process)

    @property
    def url(self) -> str:
        """Address of the job, once it takes datasets."""
        self.wait_for_any("awaiting-dataset", "awaiting-grant")
        return f"https://127.0.0.1:{self.wait_event(event='listening')['port']}"

    def wait(self, seconds: float = 120) -> int:
        """Exit code of the job."""
        return self.process.wait(seconds)


def waits_of(pid: int) -> Iterator[str]:
    """What each thread of a process and of those below it waits for: `cmdline: syscall(2) and arguments`."""
    for process in family(pid):
        for thread in Path(f"/proc/{process}/task").glob("*"):
            with suppress(OSError):  # it ended
                words = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                call, name = (
                    (thread / "syscall").read_text().strip(),
                    (thread / "comm").read_text().strip(),
                )
                yield f"{process} {words[:80]} {name}: {call}"


@contextmanager
def starting_jobs(
    folder: Path, agent: Agent, stack_server: ForkServer
) -> Iterator[Callable[..., Job]]:
    """Yields `start(spec, "--spool", folder)`; the jobs are ended with the context, by process id.

    A job is forked, as are its processes, or `started_anew`, as a container starts it. One with `variables` is
    started anew, since what they do they may do to the start.
    """
    jobs: list[Job] = []

    def start(
        spec: Path,
        *options: object,
        guest_agent: Path | None = None,
        variables: Mapping[str, str] | None = None,
        started_anew: bool = False,
    ) -> Job:
        own = folder / f"job{len(jobs)}"
        own.mkdir()
        workspace = (
            Path(os.environ.get("TEST_TMPFS", SHM))
            / f"trainer-test-{os.getpid()}-{folder.name}-{len(jobs)}"
        )
        workspace.mkdir(mode=0o700)
        out, err, ciphertext = own / "out", own / "err", own / "ciphertext"
        places = ["--guest-agent", guest_agent or agent.socket, "--workspace", workspace]
        if "--spool" not in options:
            places += ["--ciphertext-dir", ciphertext]
        with out.open("wb") as stdout, err.open("wb") as stderr:
            arguments = [str(argument) for argument in ("run", spec, *places, *options)]
            if started_anew or variables:
                process: Process = subprocess.Popen(
                    [sys.executable, "-m", "trainer", *arguments],
                    stdout=stdout,
                    stderr=stderr,
                    env=environment(**(variables or {})),
                )
            else:
                output = {1: stdout.fileno(), 2: stderr.fileno()}
                process = stack_server.start(
                    "tests.forked_job", arguments, output, environment=environment()
                )
        jobs.append(Job(process, spec, out, err, ciphertext, workspace))
        return jobs[-1]

    try:
        yield start
    finally:
        for job in jobs:
            print(job.out.read_text()[-_SHOWN_OUTPUT:])  # pytest shows it where a test failed
            print(job.err.read_text()[-_SHOWN_OUTPUT:])
            print(*waits_of(job.process.pid), sep="\n")
            job.process.kill()
            job.process.wait(20)
            subprocess.run(["rm", "-rf", str(job.workspace)], check=True)


@pytest.fixture
def start_job(
    tmp_path: Path, agent: Agent, stack_server: ForkServer
) -> Iterator[Callable[..., Job]]:
    """`start_job(spec, "--spool", folder)`: ended with the test."""
    with starting_jobs(tmp_path, agent, stack_server) as start:
        yield start


StartJob = Callable[..., Job]


@dataclass(frozen=True)
class Provider:
    """A provider's files and commands."""

    folder: Path
    trainer: Trainer
    agent: Agent

    @property
    def identity(self) -> Path:
        """The provider's identity file."""
        return self.folder / "provider.key"

    @property
    def policy_file(self) -> Path:
        """The policy that `policy` writes."""
        return self.folder / "policy.yaml"

    @property
    def public_key(self) -> str:
        """The public half of the provider key in the identity file."""
        key = read_identity_file(self.identity).provider_key
        assert key is not None
        return key.public

    def keygen(self, *options: str, name: str = "provider.key") -> str:
        """A new identity; returns its recipient."""
        ran = self.trainer("keygen", "-o", self.folder / name, *options)
        assert ran.code == 0, ran.err
        return ran.out.strip()

    def policy(
        self, spec: Path, *options: object, name: str = "policy.yaml", development: bool = True
    ) -> Path:
        """A strict policy for `spec`; trusts the development root if `development`."""
        state, path = self.agent.state, self.folder / name
        root: Sequence[object] = ["--trust-root", state / "root.pem"] if development else []
        if (service := state / "key-service.json").exists():
            pins = json.loads(service.read_bytes())
            options = (*options, "--kms-root-key", pins["kms_root_key"], "--app-id", pins["app_id"])
        ran = self.trainer(
            "policy", "init", "--app-compose", self.agent.app_compose, "--job", spec, *root,
            "--collateral", state / "collateral.json", "--measurements", state / "measurements.json",
            "--no-gpu", *options, "-o", path,
        )  # fmt: skip
        assert ran.code == 0, ran.err
        return path

    def seal(self, data: Path, record: Path, output: Path, *options: object) -> Ran:
        """Seals data on the attestation result in `record`, to a new identity."""
        return self.trainer(
            "seal", data, "--policy", self.policy_file, "--attestation", record,
            "-r", self.keygen(), "-o", output, *options,
        )  # fmt: skip

    def deliver(self, job: Job, data: Path, folder: Path, *policy: str) -> Path:
        """Verifies, seals and uploads with files in `folder`; returns the attestation result."""
        record, sealed = folder / "attestation.json", folder / "dataset.age"
        self.policy(job.spec, *policy)
        verified = self.trainer("verify", job.url, "--policy", self.policy_file, "-o", record)
        assert verified.code == 0, verified.err
        sealing = self.seal(data, record, sealed)
        assert sealing.code == 0, sealing.err
        judged = ("--policy", self.policy_file, "--attestation", record)
        uploaded = self.trainer("upload", sealed, "--job-url", job.url, *judged)
        assert uploaded.code == 0, uploaded.err
        return record

    def submission(self, job: Job, data: Path, result: Path) -> tuple[str, ...]:
        """Arguments of `submit` for a job."""
        return (
            "submit", str(data), "--job-url", job.url, "--policy", str(self.policy_file),
            "-i", str(self.identity), "-o", str(result),
        )  # fmt: skip

    def pull(self, url: str, attestation: Path, output: Path, record: Path) -> Ran:
        """Pulls and acknowledges by the grant beside `record`; `attestation` is of the job as it runs now."""
        return self.trainer(
            "pull", url, "--policy", self.policy_file, "--attestation", attestation, "-o", output,
            "--ack", "--grant", grant_beside(record),
        )  # fmt: skip

    def open(self, result: Path, output: Path, record: Path) -> Ran:
        """Opens a result with the record that the dataset was sealed on, and the grant beside it."""
        return self.trainer(
            "open", result, "-i", self.identity, "-o", output,
            "--policy", self.policy_file, "--attestation", record, "--grant", grant_beside(record),
        )  # fmt: skip


@pytest.fixture
def provider(tmp_path: Path, trainer: Trainer, agent: Agent) -> Provider:
    folder = tmp_path / "provider"
    folder.mkdir()
    return Provider(folder, trainer, agent)


@pytest.fixture
def kms_provider(tmp_path: Path, trainer: Trainer, kms_agent: Agent) -> Provider:
    """The provider of a job whose keys come from a key service; its jobs need `guest_agent=kms_agent.socket`."""
    folder = tmp_path / "kms-provider"
    folder.mkdir()
    return Provider(folder, trainer, kms_agent)
