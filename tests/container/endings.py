"""Jobs in a container that is ended in every way in every phase, while one `trainer submit` runs outside.

A cell of the matrix is an ending, a phase and a deployment profile. `run_cell` carries one out: it deploys the
shipped compose file, lets the provider's command begin, waits for the phase, ends the job, does what its operator
does next, and looks at what the command brings back and at all that the job printed over its starts.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.container.conftest import BuiltImage
from tests.container.engine import ROOT, terminate
from tests.container.gate import Gate
from tests.container.job_files import MODEL_IN_CONTAINER, write_spec
from trainer.deployment import CLEAN_START

ENDINGS: Final = ("stop", "kill", "worker", "front", "supervisor", "engine", "reboot")
PHASES: Final = (
    "preparing",
    "awaiting-dataset",
    "upload",
    "opening",
    "training",
    "sealing",
    "awaiting-pull",
)
PROFILES: Final = ("kms", "sealed")
RESTARTED_INSIDE: Final = ("worker", "front", "supervisor")
"""Endings of a process that the job's own parent replaces: the operator does nothing."""

PROJECT: Final = "trainer-endings"
JOB_PORT: Final = 8443
GATE_PORT: Final = 8500
SECONDS: Final = 150.0
MAX_STEPS: Final = 16
HOLD_UP: Final = 60_000
"""Bytes of an upload that get through; the sealed dataset has several times as many."""
HOLD_DOWN: Final = 30_000
"""Bytes of a result that get through."""


@dataclass(frozen=True)
class Cell:
    """One ending in one phase under one profile; without an ending, a run that nothing interrupts."""

    ending: str
    phase: str
    profile: str

    def __str__(self) -> str:
        return f"{self.ending}:{self.phase}:{self.profile}"

    @property
    def exists(self) -> bool:
        """There is no worker any more once the result is being sealed."""
        return not (self.ending == "worker" and self.phase in {"sealing", "awaiting-pull"})


ALL_CELLS: Final = tuple(
    cell
    for ending in ENDINGS
    for phase in PHASES
    for profile in PROFILES
    if (cell := Cell(ending, phase, profile)).exists
)


@dataclass
class Outcome:
    """What a cell came to.

    Attributes:
        code: exit code of the provider's command, the last time it ran.
        repeats: how often it was called again after its own wait was over.
        equal: whether the adapter is that of the uninterrupted run, byte for byte.
        twice: what was done although it was done before.
        was: the phase that the job was in when it ended, as its log says.
        seconds: from the ending to the end of the provider's command.
        failure: what went wrong otherwise.
    """

    cell: Cell
    code: int | None = None
    repeats: int = 0
    equal: bool = False
    twice: list[str] = field(default_factory=list)
    was: str = ""
    seconds: float = 0.0
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether the promise held."""
        return (
            self.code == 0
            and self.equal
            and not self.twice
            and not self.failure
            and self.repeats <= 1
        )


class Deployment:
    """The job under one profile: its files, its simulated VM, and what its container printed.

    Args:
        image: the image under test.
        folder: empty directory.
        profile: `kms` or `sealed`.
        model: directory of the base model.
    """

    def __init__(self, image: BuiltImage, folder: Path, profile: str, model: Path) -> None:
        self.engine, self.folder, self.profile = image.engine, folder, profile
        self.container = ""
        self.events: list[dict[str, Any]] = []
        self.expected: bytes | None = None
        self._read = 0
        self._log = Path()
        self._simulator: subprocess.Popen[bytes] | None = None
        self._prepare(image.reference, model)

    # files

    def _prepare(self, reference: str, model: Path) -> None:
        copied = self.folder / "model"
        shutil.copytree(model, copied)
        copied.chmod(0o755)
        write_long_spec(self.folder / "job.yaml", copied)
        write_rows(self.folder / "train.jsonl")
        text = (ROOT / "configs" / "docker-compose-cpu.yaml").read_text("utf-8")
        for old, new in (
            (f"confidential-trainer@sha256:{'0' * 64}", reference),
            (
                "- /var/run/dstack.sock:",
                f"- {copied}:{MODEL_IN_CONTAINER}:ro\n      - {self.folder}/vm/agent.sock:",
            ),
            ("size=6g", "size=1g"),
        ):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (self.folder / "docker-compose.yaml").write_text(text)
        kms = ("--profile", "kms", "--key-provider-id", "ab" * 32) if self.profile == "kms" else ()
        self.trainer(
            "job",
            "render",
            "job.yaml",
            "docker-compose.yaml",
            "--write-compose",
            *kms,
            "-o",
            "app-compose.json",
        )
        self.start_simulator()
        self.trainer("keygen", "-o", "provider.key")
        self.trainer(
            "policy", "init", "--app-compose", "app-compose.json", "--job", "job.yaml",
            "--trust-root", "state/root.pem", "--collateral", "state/collateral.json",
            "--measurements", "state/measurements.json", "--no-gpu",
            *(self.key_service() if self.profile == "kms" else ()), "-o", "policy.yaml",
        )  # fmt: skip

    def key_service(self) -> tuple[str, ...]:
        """Return the options of a policy that seals to the key of the simulated key service."""
        pins = json.loads((self.folder / "state" / "key-service.json").read_bytes())
        return (
            "--recipient",
            "derived",
            "--kms-root-key",
            pins["kms_root_key"],
            "--app-id",
            pins["app_id"],
        )

    def trainer(self, *arguments: str) -> None:
        """Run a command of the operator or the provider that needs no network."""
        done = subprocess.run(
            [sys.executable, "-m", "trainer", *arguments], cwd=self.folder, env=environment(),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def start_simulator(self) -> None:
        """Start the simulated guest agent: a boot, with keys of its own in the profile `sealed`."""
        if self._simulator is not None:
            terminate(self._simulator)
        state = self.folder / "state"
        socket = self.folder / "vm" / "agent.sock"
        socket.parent.mkdir(exist_ok=True)
        socket.unlink(missing_ok=True)
        simulate = ["simulate", "--socket", socket, "--state", state, "--app-compose"]
        command = [
            sys.executable,
            "-m",
            "trainer",
            *map(str, simulate),
            str(self.folder / "app-compose.json"),
        ]
        with (self.folder / "simulate.log").open("ab") as log:
            self._simulator = subprocess.Popen(command, stdout=log, stderr=log)
        while not (socket.exists() and (state / "measurements.json").exists()):
            assert self._simulator.poll() is None, (self.folder / "simulate.log").read_text()
            time.sleep(0.05)

    def close(self) -> None:
        """End the simulated VM."""
        if self._simulator is not None:
            terminate(self._simulator)

    # the container

    def compose(self, *arguments: str) -> str:
        """Run a compose command on the job."""
        file = str(self.folder / "docker-compose.yaml")
        return self.engine.docker("compose", "--project-name", PROJECT, "--file", file, *arguments)

    def up(self) -> None:
        """Start the container, the same one if it is still there."""
        self.poll()
        self.compose("up", "--detach")
        container = self.compose("ps", "--all", "--quiet").strip()
        if container != self.container:
            self.container, self._read = container, 0
            self._log = self.engine.path(self.engine.inspect(container)["LogPath"])

    def down(self) -> None:
        """Remove container and volume."""
        with suppress(Exception):
            self.compose("down", "--volumes", "--timeout", "1")
        self.container = ""

    def poll(self) -> list[dict[str, Any]]:
        """Read what the container has printed since; returns all events of all starts."""
        if self.container:
            with suppress(FileNotFoundError), self._log.open("rb") as file:
                file.seek(self._read)
                data = file.read()
                complete = data[: data.rfind(b"\n") + 1]
                self._read += len(complete)
                self.events += [
                    json.loads(json.loads(line)["log"]) for line in complete.splitlines()
                ]
        return self.events

    def wait_for(self, **wanted: object) -> dict[str, Any]:
        """Wait for an event with these fields, of any start."""
        deadline, seen = time.monotonic() + SECONDS, 0
        while True:
            events = self.poll()
            for event in events[seen:]:
                if wanted.items() <= event.items():
                    return event
            seen = len(events)
            assert time.monotonic() < deadline, (wanted, events[-3:])
            time.sleep(0.005)

    def is_running(self) -> bool:
        """Whether the container runs."""
        return bool(self.engine.inspect(self.container)["State"]["Running"])

    def processes(self) -> dict[str, int]:
        """Process ids by role: worker, front, supervisor, and the parent that restarts it."""
        found: dict[str, int] = {}
        unnamed: dict[int, int] = {}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, StopIteration):
                if self.container not in (path / "cgroup").read_text():
                    continue
                words = (path / "cmdline").read_bytes()
                if b"-I" in words.split(b"\0"):
                    continue  # a worker that stands by
                role = next(
                    (r for r in ("worker", "front", "fetch") if f"trainer.{r}".encode() in words),
                    None,
                )
                if role:
                    found[role] = int(path.name)
                elif b"trainer" in words and b"docker-init" not in words:
                    status = (path / "status").read_text().splitlines()
                    parent = next(line for line in status if line.startswith("PPid:"))
                    unnamed[int(path.name)] = int(parent.split()[1])
        for process, parent_process in unnamed.items():
            found["supervisor" if parent_process in unnamed else "parent"] = process
        return found


@dataclass
class Run:
    """One cell while it runs."""

    job: Deployment
    cell: Cell
    gate: Gate
    folder: Path
    frozen: int = 0

    def reach_phase(self) -> None:
        """Return when the job is in the phase, and cannot leave it before `thaw` and `gate.release`."""
        job, gate = self.job, self.gate
        match self.cell.phase:
            case "preparing":
                self.freeze_at("preparing")
                wait_until(lambda: gate.connections > 0)
                time.sleep(0.3)  # the provider's request has arrived
            case "awaiting-dataset":
                job.wait_for(event="phase", phase="awaiting-dataset")
                wait_until((self.folder / "result.submission" / "attestation.json").exists)
                gate.hold("up", 0)  # verified, nothing sent
            case "upload":
                job.wait_for(event="phase", phase="awaiting-dataset")
                gate.hold("up", HOLD_UP)
                assert gate.held.wait(SECONDS)
            case "opening" | "sealing":
                self.freeze_at(self.cell.phase)
            case "training":
                job.wait_for(event="checkpoint-sealed")
            case "awaiting-pull":
                job.wait_for(event="phase", phase="sealing")
                gate.hold("down", HOLD_DOWN)
                job.wait_for(event="phase", phase="awaiting-pull")
                assert gate.held.wait(SECONDS)

    def freeze_at(self, phase: str) -> None:
        """Stop the supervisor when it has entered a phase: only its clock stops."""
        job = self.job
        wait_until(lambda: "supervisor" in job.processes())
        supervisor = job.processes()["supervisor"]
        job.wait_for(event="phase", phase=phase)
        os.kill(supervisor, signal.SIGSTOP)
        self.frozen = supervisor
        time.sleep(0.05)

    def thaw(self) -> None:
        """Let the supervisor go on."""
        if self.frozen:
            with suppress(ProcessLookupError):
                os.kill(self.frozen, signal.SIGCONT)
            self.frozen = 0

    def end(self) -> None:
        """End the job, and do what its operator does then."""
        job, engine, ending = self.job, self.job.engine, self.cell.ending
        match ending:
            case "worker" | "front" | "supervisor":
                os.kill(job.processes()[ending], signal.SIGKILL)
                self.thaw()
                self.gate.release(drop=ending != "worker")
            case "stop":
                self.ask(lambda: engine.request("POST", f"/containers/{job.container}/stop"))
                job.up()
            case "kill":
                self.kill()
                job.up()
            case "engine":
                self.ask(lambda: engine.stop_daemons("dockerd"))
                engine.start_daemons()
                job.up()
            case "reboot":
                self.kill()
                self.reboot()
                job.up()

    def ask(self, stop: Callable[[], object]) -> None:
        """Ask the job to end by itself, and wait until it has."""
        with ThreadOf(stop):
            time.sleep(0.3)  # the signal is pending
            self.thaw()
            self.gate.release(drop=True)

    def kill(self) -> None:
        """End the container without a word."""
        job = self.job
        assert job.engine.request("POST", f"/containers/{job.container}/kill") < 300
        wait_until(lambda: not job.is_running())
        self.frozen = 0
        self.gate.release(drop=True)

    def reboot(self) -> None:
        """End the engine and start it as a VM of this profile finds it after a boot."""
        job, engine = self.job, self.job.engine
        job.poll()
        engine.stop_daemons("dockerd", "containerd")
        try:
            if self.cell.profile == "kms":
                engine.run_init_script(CLEAN_START)
                job.start_simulator()
            else:
                # The disk was encrypted with a key that ended with the VM, as did the keys of the job.
                for store in ("docker", "containerd"):
                    subprocess.run(
                        engine.in_mounts(
                            "find", f"{engine.stores}/{store}", "-mindepth", "1", "-delete"
                        ),
                        check=True,
                    )
                job.start_simulator()
        finally:
            engine.start_daemons()


class ThreadOf:
    """Runs a function in a thread for the time of the context; raises what it raised."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:  # noqa: BLE001 -- raised again in the thread that waits
            self._error = error

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


def run_cell(job: Deployment, cell: Cell, folder: Path) -> Outcome:
    """Carry out a cell; what the provider's command printed lies in `folder` as submit.log."""
    outcome = Outcome(cell)
    job.events.clear()
    gate = Gate(job.engine.network, GATE_PORT, JOB_PORT)
    run = Run(job, cell, gate, folder)
    try:
        job.up()
        job.wait_for(event="listening")
        with submitting(job, folder) as command:
            if cell.ending:
                run.reach_phase()
                outcome.was = next(
                    e["phase"] for e in reversed(job.poll()) if e["event"] == "phase"
                )
                started = time.monotonic()
                run.end()
            else:
                started = time.monotonic()
            outcome.code = command.wait(SECONDS)
        if outcome.code:
            outcome.repeats = 1
            with submitting(job, folder) as command:
                outcome.code = command.wait(SECONDS)
        outcome.seconds = time.monotonic() - started
        look(job, cell, folder, outcome, sent=gate.carried["up"])
    except Exception as error:  # noqa: BLE001 -- a line of the table, and the test fails on it
        outcome.failure = f"{type(error).__name__}: {error}"[:300]
    finally:
        run.thaw()
        gate.close()
        (folder / "events.jsonl").write_text(
            "".join(json.dumps(event) + "\n" for event in job.poll())
        )
        job.down()
    return outcome


def look(job: Deployment, cell: Cell, folder: Path, outcome: Outcome, *, sent: int) -> None:
    """Compare adapter and events with what is promised."""
    adapter = folder / "result" / "adapter" / "adapter_model.safetensors"
    if outcome.code == 0:
        found = adapter.read_bytes()
        outcome.equal = job.expected is None or found == job.expected
        if not cell.ending:
            job.expected = found
        if b"the job was not told" in (folder / "submit.log").read_bytes():
            outcome.failure = "the result was not acknowledged"
            return
        wait_until(lambda: not job.is_running(), 40)
        if (ended := job.engine.inspect(job.container)["State"]["ExitCode"]) != 0:
            outcome.failure = f"the container ended with {ended}"
    lost = cell.ending == "reboot" and cell.profile == "sealed"  # its disk ended with its keys
    outcome.twice = repeated_work(job.poll(), keeps_disk=not lost)
    size = (job.folder / "train.jsonl").stat().st_size
    phase = PHASES.index(cell.phase) if cell.ending else 0
    if cell.profile == "kms" and phase > PHASES.index("upload") and sent > 1.6 * size:
        outcome.twice.append("upload")
    if cell.ending == "stop" and cell.phase == "training" and not saved_before_end(job.poll()):
        outcome.failure = "no checkpoint was sealed when the container was stopped"


def repeated_work(events: Sequence[dict[str, Any]], *, keeps_disk: bool) -> list[str]:
    """Return the steps that were trained although a checkpoint or a result of them was sealed before."""
    found: list[str] = []
    saved, start_saved, is_finished, highest = 0, 0, False, 0
    for position, event in enumerate(events):
        match event["event"]:
            case "spec":  # a start
                start_saved = saved if keeps_disk or saved == 0 else 0
                if not keeps_disk:
                    is_finished = False
            case "checkpoint-sealed":
                saved = max(saved, event["step"])
            case "progress":
                highest = max(highest, event["step"])
                if is_finished:
                    found.append(f"step {event['step']} after the result")
                elif event["step"] <= start_saved:
                    found.append(f"step {event['step']} of {start_saved}")
            case "result-sealed":
                following = next((e for e in events[position + 1 :] if e["event"] == "phase"), {})
                is_finished = is_finished or (
                    highest == MAX_STEPS and following.get("phase") != "failed"
                )
    return found


def saved_before_end(events: Sequence[dict[str, Any]]) -> bool:
    """Return whether the first start sealed a checkpoint of its last step."""
    names = [event["event"] for event in events]
    first = events[: names.index("spec", 1)] if "spec" in names[1:] else events
    steps = {
        kind: [event["step"] for event in first if event["event"] == kind]
        for kind in ("progress", "checkpoint-sealed")
    }
    return bool(max(steps["checkpoint-sealed"], default=0) >= max(steps["progress"]))


def submitting(job: Deployment, folder: Path) -> subprocess.Popen[bytes]:
    """Start the provider's command, in the network where the job is published."""
    command = [
        sys.executable, "-m", "trainer", "submit", job.folder / "train.jsonl",
        "--job-url", f"https://127.0.0.1:{GATE_PORT}", "--policy", job.folder / "policy.yaml",
        "-i", job.folder / "provider.key", "-o", folder / "result", "--wait", "60",
    ]  # fmt: skip
    with (folder / "submit.log").open("ab") as log:
        log.write(b"--- submit\n")
        log.flush()
        return subprocess.Popen(
            job.engine.in_network(*map(str, command)), env=environment(), stdout=log, stderr=log
        )


def environment() -> dict[str, str]:
    """Return the variables of a provider's or operator's command."""
    return {**os.environ, "COLUMNS": "160", "NO_COLOR": "1"}


def wait_until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "a condition did not hold in time"
        time.sleep(0.02)


def write_long_spec(path: Path, model: Path) -> None:
    """Write a job that trains for a few seconds, with checkpoints."""
    write_spec(
        path,
        model,
        lora={"lora_r": 16, "lora_alpha": 16},
        data={"max_length": 384, "test_split_size": 0.05},
        train={
            "learning_rate": 0.002,
            "max_steps": MAX_STEPS,
            "save_steps": 4,
            "bf16": False,
            "per_device_train_batch_size": 2,
        },
        output={"samples": 0},
        exchange={"host": "0.0.0.0", "port": JOB_PORT, "linger_seconds": 300},
    )


def write_rows(path: Path) -> None:
    """Write a dataset of some 200 KB."""
    answer = "The number that you ask for is one of many, and all of them are known. " * 6
    with path.open("w") as file:
        for number in range(400):
            turns = [
                {"role": "user", "content": f"What is {number}?"},
                {"role": "assistant", "content": f"{number}: {answer[number % 60 :]}"},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the matrix as a table in Markdown, one line a cell."""
    lines = [
        "| ending | phase | profile | same command | bitwise equal | nothing twice | seconds |",
        "|---|" * 1,
    ]
    lines[1] = "|---|---|---|---|---|---|---|"
    for outcome in outcomes:
        cell = outcome.cell
        command = f"exit {outcome.code}" + (", repeated" if outcome.repeats else "")
        twice = "yes" if not outcome.twice else ", ".join(outcome.twice[:2])
        equal = "yes" if outcome.equal else "no"
        note = f" {outcome.failure}" if outcome.failure else ""
        lines.append(
            f"| {cell.ending} | {cell.phase} | {cell.profile} | {command}{note} | {equal} | {twice} "
            f"| {outcome.seconds:.0f} |"
        )
    return "\n".join(lines)
