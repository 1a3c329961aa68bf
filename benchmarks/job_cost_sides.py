"""The sides of `benchmarks/job_cost.py`: each starts the processes that a user would start and records their
times."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from trainer.sandbox.child_environment import allocator_variables

HERE: Final = Path(__file__).parent
MEMORY: Final = Path("/dev/shm")
POLL_SECONDS: Final = 0.02


@dataclass
class Run:
    """One run of one side; `marks` are seconds from its start, `steps` those at which optimizer steps ended.

    A job publishes some of its steps only. `step_cpu` are the processor seconds that the process which trains had
    used by then.
    `train_seconds` is what lies between the beginning of the first step and the end of the last, by the run's own
    watch where it has one; `parts` is that watch, `cpu_seconds` the processor time of all processes.
    """

    marks: dict[str, float] = field(default_factory=dict)
    steps: dict[int, float] = field(default_factory=dict)
    step_cpu: dict[int, float] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    train_seconds: float = 0.0
    cpu_seconds: float = 0.0
    loss: float | None = None

    @property
    def step_seconds_cpu(self) -> float:
        """Processor seconds per optimizer step."""
        first, last = min(self.step_cpu), max(self.step_cpu)
        return (self.step_cpu[last] - self.step_cpu[first]) / (last - first)

    @property
    def train_cpu(self) -> float:
        """Processor seconds of all optimizer steps."""
        return self.step_seconds_cpu * max(self.step_cpu)

    @property
    def whole(self) -> float:
        """Seconds from the start of the first process to the end of the last."""
        return self.marks["end"]


class Clock:
    """Returns the seconds since it was created."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() - self._started


@dataclass(frozen=True)
class Setting:
    """Input of all sides.

    Args:
        folder: for what a run writes.
        job: the job spec.
        model: base model.
        data: JSONL.
    """

    folder: Path
    job: Path
    model: Path
    data: Path


def used(pid: int) -> float:
    """Return the processor seconds of a running process (proc(5), stat, fields 14 and 15); 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children_of(process: int) -> list[int]:
    """Return the ids of a process's children."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for path in tasks for child in path.read_text().split()]


def worker_of(job: int) -> int:
    """Return the process id of a job's worker; 0 if it has none."""
    for child in children_of(job):
        words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        if b"trainer.worker" in words and b"-I" not in words:  # that one stands by
            return child
    return 0


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **more}


def wait(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Wait for a process; returns its exit code and processor seconds, including children that it waited for."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_utime + used.ru_stime


def spoken(stream: IO[bytes], clock: Clock) -> Iterator[tuple[float, str]]:
    """Yield each line of a stream with the time at which it arrived."""
    for line in stream:
        yield clock(), line.decode("utf-8", "replace").rstrip("\n")


# the plain sides


def run_plain(setting: Setting, python: str) -> Run:
    """Run the worker's code in one process without sandbox, supervisor and encryption."""
    output = Path(tempfile.mkdtemp(dir=setting.folder))
    order = json.dumps(
        {
            "kind": "training-order",
            "spec": json.loads(_spec_json(setting.job, python)),
            "model_dir": str(setting.model),
            "data_files": {setting.data.name: str(setting.data)},
            "output_dir": str(output),
        }
    )
    reading, writing = os.pipe()
    run, clock = Run(), Clock()
    process = subprocess.Popen(
        [python, "-m", "trainer.worker", "--events-fd", str(writing)],
        stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=[writing],
        env=environment(**allocator_variables()),
    )  # fmt: skip
    os.close(writing)
    assert process.stdin is not None
    process.stdin.write(order.encode() + b"\n")
    process.stdin.close()
    summary: dict[str, Any] = {}
    with os.fdopen(reading, "rb") as stream:
        for at, line in spoken(stream, clock):
            message = json.loads(line)
            if message["kind"] == "progress":
                run.steps[message["step"]] = at
                run.step_cpu[message["step"]] = used(process.pid)
            elif message["kind"] == "finished":
                summary = message["summary"]
            elif message["kind"] == "failed":
                raise SystemExit(f"the plain side failed: {message}")
    code, run.cpu_seconds = wait(process)
    run.marks["end"] = clock()
    if code:
        raise SystemExit(f"the plain side ended with {code}")
    _take_summary(run, summary)
    shutil.rmtree(output)
    return run


def _take_summary(run: Run, summary: dict[str, Any]) -> None:
    run.parts, run.loss = summary["seconds"], summary["eval_loss_after"]
    run.train_seconds = run.parts["train"]
    run.marks["first step"] = run.steps[min(run.steps)]


def _spec_json(job: Path, python: str) -> bytes:
    code = (
        "import sys; from pathlib import Path; from trainer.spec import read_job_spec\n"
        "print(read_job_spec(Path(sys.argv[1])).model_dump_json(exclude_unset=True))"
    )
    return subprocess.run([python, "-c", code, job], check=True, capture_output=True).stdout


def run_stock(setting: Setting, python: str) -> Run:
    """Run HF `Trainer` in a script as a user without this project would write it."""
    output = Path(tempfile.mkdtemp(dir=setting.folder))
    run, clock = Run(), Clock()
    process = subprocess.Popen(
        [python, HERE / "job_cost_stock.py", setting.job, setting.model, setting.data, output],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    for at, line in spoken(process.stdout, clock):
        if line == "begin":
            run.marks["training"] = at
        elif line == "step":
            step = len(run.steps) + 1
            run.steps[step], run.step_cpu[step] = at, used(process.pid)
    code, run.cpu_seconds = wait(process)
    run.marks["end"] = clock()
    if code:
        raise SystemExit(f"the stock side ended with {code}")
    last = run.steps[max(run.steps)]
    run.marks["first step"], run.train_seconds = run.steps[1], last - run.marks["training"]
    shutil.rmtree(output)
    return run


# the confidential side


class Confidential:
    """A simulated VM and a provider with key and policy, made once before the measurement.

    Args:
        setting: what is trained.
        python: an interpreter that imports the code that is to run.
    """

    def __init__(self, setting: Setting, python: str) -> None:
        self._setting = setting
        self._python = python
        self._folder = Path(tempfile.mkdtemp(dir=setting.folder))
        self._socket, self._state = self._folder / "s", self._folder / "state"
        compose = self._folder / "app-compose.json"
        compose.write_text('{"name":"benchmark","docker_compose_file":"services: {}"}')
        self._agent = self._start(
            "simulate", "--socket", self._socket, "--state", self._state, "--app-compose", compose,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        while not (self._socket.exists() and (self._state / "measurements.json").exists()):
            if self._agent.poll() is not None:
                raise SystemExit("the simulated guest agent did not come up")
            time.sleep(POLL_SECONDS)
        self._provider("keygen", "-o", self._folder / "provider.key")
        self._provider(
            "policy", "init", "--app-compose", compose, "--job", setting.job,
            "--trust-root", self._state / "root.pem", "--collateral", self._state / "collateral.json",
            "--measurements", self._state / "measurements.json", "--no-gpu", "-o", self._folder / "policy.yaml",
        )  # fmt: skip

    def _command(self, *arguments: object) -> list[str]:
        return [self._python, "-m", "trainer", *map(str, arguments)]

    def _start(self, *arguments: object, stdout: int) -> subprocess.Popen[bytes]:
        home = str(self._folder / "home")
        variables = environment(XDG_CACHE_HOME=home, XDG_STATE_HOME=home)
        return subprocess.Popen(
            self._command(*arguments),
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            env=variables,
            cwd=self._folder,
        )

    def _provider(self, *arguments: object) -> None:
        subprocess.run(
            self._command(*arguments), check=True, capture_output=True, env=environment()
        )

    def run(self, meanwhile: Callable[[Path, int, int], None] | None = None) -> Run:
        """Run one job to its end; the provider's command starts when the job accepts datasets.

        Args:
            meanwhile: called in a thread with the workspace and the process ids of job and `submit`.
        """
        run, clock = Run(), Clock()
        result, workspace = self._folder / "result", Path(tempfile.mkdtemp(dir=MEMORY))
        job = self._start(
            "run", self._setting.job, "--guest-agent", self._socket, "--workspace", workspace,
            "--ciphertext-dir", self._folder / "ciphertext", stdout=subprocess.PIPE,
        )  # fmt: skip
        listener = _Listener(job, run, clock)
        try:
            port = listener.wait_for_dataset()
            run.marks["submit"] = clock()
            submit = self._start(
                "submit", self._setting.data, "--job-url", f"https://127.0.0.1:{port}", "--policy",
                self._folder / "policy.yaml", "-i", self._folder / "provider.key", "-o", result, "--json",
                stdout=subprocess.PIPE,
            )  # fmt: skip
            assert submit.stdout is not None
            if meanwhile is not None:
                threading.Thread(
                    target=meanwhile, args=(workspace, job.pid, submit.pid), daemon=True
                ).start()
            said = submit.stdout.read().splitlines()
            code, provider_seconds = wait(submit)
            run.marks["submitted"] = clock()
            if code:
                raise SystemExit(f"`trainer submit` ended with {code}")
            job_code, job_seconds = wait(job)
            run.marks["end"] = clock()
        finally:
            if job.returncode is None:
                job.kill()
        listener.thread.join()
        if job_code:
            raise SystemExit(f"the job ended with {job_code}")
        run.cpu_seconds = provider_seconds + job_seconds
        submitted = json.loads(said[-1])
        run.marks |= {
            f"provider: {name}": seconds for name, seconds in submitted["seconds"].items()
        }
        _take_summary(run, json.loads((result / "report" / "summary.json").read_bytes()))
        shutil.rmtree(result)
        shutil.rmtree(self._folder / "ciphertext")
        shutil.rmtree(workspace)
        return run

    def close(self) -> None:
        self._agent.terminate()
        self._agent.wait()


class _Listener:
    """Records the times of the job's public events; each phase is a mark."""

    def __init__(self, job: subprocess.Popen[bytes], run: Run, clock: Clock) -> None:
        self._job, self._run, self._clock = job, run, clock
        self._waiting = threading.Event()
        self._port = self._worker = 0
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def wait_for_dataset(self) -> int:
        """Wait until the job accepts a dataset; returns its port."""
        self._waiting.wait(120)
        if not self._port or "awaiting-dataset" not in self._run.marks:
            raise SystemExit(f"the job did not come up: {self._run.marks}")
        return self._port

    def _listen(self) -> None:
        assert self._job.stdout is not None
        for at, line in spoken(self._job.stdout, self._clock):
            event = json.loads(line)
            name = event["phase"] if event["event"] == "phase" else event["event"]
            if name == "progress":
                self._worker = self._worker or worker_of(self._job.pid)
                self._run.steps[event["step"]] = at
                self._run.step_cpu[event["step"]] = used(self._worker)
                continue
            # The last step is published at the end of all that follows it.
            if name == "sealing" and self._run.steps:
                last = max(self._run.steps)
                del self._run.steps[last], self._run.step_cpu[last]
            self._run.marks[name] = at
            if name == "listening":
                self._port = event["port"]
            if name in {"awaiting-dataset", "failed"}:
                self._waiting.set()
        self._waiting.set()


@contextlib.contextmanager
def confidential(setting: Setting, python: str = sys.executable) -> Iterator[Confidential]:
    side = Confidential(setting, python)
    try:
        yield side
    finally:
        side.close()
