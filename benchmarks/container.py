"""Measure a job in a container: starts, stops, and what the container adds to its processor time.

    python benchmarks/container.py OUTPUT [--steps 60] [--rounds 1] [--json]

OUTPUT is the output folder of scripts/image. The container engine is the one that `docker` reaches; it must have
the image, and this process must be root and in the engine's network, where port 8443 is published. The compose
file is configs/docker-compose-cpu.yaml with a small random Llama and a simulated guest agent, and the data is
sealed to the derived key. `processor time` compares a job in the container, from its first process to its last,
with the same command outside; both have the same job spec and train the same steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import yaml

from trainer.encoding import file_sha256

ROOT: Final = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks.sandbox import make_model, text  # noqa: E402 -- after the change of sys.path

PROJECT: Final = "trainer-benchmark"
URL: Final = "https://127.0.0.1:8443"
SECONDS: Final = 300.0
CGROUPS: Final = Path("/sys/fs/cgroup")
GOALS: Final = {
    "start to awaiting-dataset, s": 5.0,
    "stop to checkpoint sealed, s": 20.0,
    "processor time, container / outside": 1.02,
}


def run(*command: object, folder: Path | None = None) -> str:
    """Run a command to its end; returns its standard output."""
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=folder
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr.strip()[-1500:]}")
    return done.stdout


class Job:
    """The files of a job, and commands on its container.

    Args:
        folder: an empty directory.
        image: name of the image, as the engine has it.
        steps: number of optimizer steps.
    """

    def __init__(self, folder: Path, image: str, steps: int) -> None:
        self.folder = folder
        make_model(folder / "model", [text(number) for number in range(400)])
        (folder / "model").chmod(0o755)
        folder.chmod(0o755)
        (folder / "rows.jsonl").write_text(
            "".join(json.dumps({"text": text(number)}) + "\n" for number in range(400))
        )
        spec = {
            "version": 1,
            "model": {
                "model_name_or_path": str(folder / "model"),
                "model_file_sha256": {
                    file.name: file_sha256(file) for file in sorted((folder / "model").iterdir())
                },
                "dtype": "float32",
            },
            "data": {"max_length": 256, "test_split_size": 0.0},
            "train": {
                "max_steps": steps,
                "save_steps": steps // 3,
                "bf16": False,
                "learning_rate": 1e-3,
            },
            "output": {"samples": 0},
            "exchange": {"host": "0.0.0.0", "port": 8443, "linger_seconds": 300},
        }
        (folder / "job.yaml").write_text(yaml.safe_dump(spec))
        compose = (ROOT / "configs" / "docker-compose-cpu.yaml").read_text("utf-8")
        for old, new in (
            (f"confidential-trainer@sha256:{'0' * 64}", image),
            (
                "- /var/run/dstack.sock:",
                f"- {folder}/model:{folder}/model:ro\n      - {folder}/agent.sock:",
            ),
            ("size=6g", "size=1g"),
        ):
            compose = compose.replace(old, new)
        (folder / "docker-compose.yaml").write_text(compose)
        kms = ("--profile", "kms", "--key-provider-id", "ab" * 32)
        self.trainer(
            "job",
            "render",
            "job.yaml",
            "docker-compose.yaml",
            "--write-compose",
            *kms,
            "-o",
            "app.json",
        )

    def trainer(self, *arguments: object) -> str:
        """Run a command of the operator or the provider."""
        return run(sys.executable, "-m", "trainer", *arguments, folder=self.folder)

    @contextmanager
    def simulated(self) -> Iterator[None]:
        """Run the simulated guest agent, and write a policy for it."""
        state = self.folder / "state"
        arguments = [
            "--socket",
            self.folder / "agent.sock",
            "--state",
            state,
            "--app-compose",
            self.folder / "app.json",
        ]
        command = [sys.executable, "-m", "trainer", "simulate", *map(str, arguments)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as agent:
            try:
                while not (state / "key-service.json").exists():
                    time.sleep(0.1)
                self.trainer("keygen", "-o", "provider.key")
                pins = json.loads((state / "key-service.json").read_bytes())
                self.trainer(
                    "policy", "init", "--app-compose", "app.json", "--job", "job.yaml", "--recipient", "derived",
                    "--kms-root-key", pins["kms_root_key"], "--app-id", pins["app_id"],
                    "--trust-root", state / "root.pem", "--collateral", state / "collateral.json",
                    "--measurements", state / "measurements.json", "--no-gpu", "-o", "policy.yaml",
                )  # fmt: skip
                yield
            finally:
                agent.terminate()

    def submit(self) -> subprocess.Popen[bytes]:
        """Start the provider's command; its result goes into a directory of its own."""
        result = Path(tempfile.mkdtemp(dir=self.folder)) / "result"
        command = [
            "submit",
            "rows.jsonl",
            "--job-url",
            URL,
            "--policy",
            "policy.yaml",
            "-i",
            "provider.key",
        ]
        return subprocess.Popen(
            [sys.executable, "-m", "trainer", *command, "-o", str(result), "--quiet"],
            cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def compose(self, *arguments: str) -> str:
        """Run a compose command on the job."""
        file = self.folder / "docker-compose.yaml"
        return run("docker", "compose", "--project-name", PROJECT, "--file", file, *arguments)


class Container:
    """The job's container, from its start on.

    Attributes:
        began: Unix time at which the engine was asked to start it.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self.began = time.time()
        job.compose("up", "--detach")
        self.id = job.compose("ps", "--all", "--quiet").strip()

    def restart(self) -> None:
        """Start the same container again."""
        self.began = time.time()
        run("docker", "start", self.id)

    def events(self) -> list[tuple[float, dict[str, Any]]]:
        """Return what this start has printed: Unix time in seconds, event."""
        found = []
        for line in run("docker", "logs", "--timestamps", self.id).splitlines():
            stamp, _, event = line.partition(" ")
            whole, _, fraction = stamp.rstrip("Z").partition(".")
            seconds = (
                time.mktime(time.strptime(whole + "UTC", "%Y-%m-%dT%H:%M:%S%Z")) - time.timezone
            )
            seconds += float(f"0.{fraction or 0}")
            if seconds >= self.began:
                found.append((seconds, json.loads(event)))
        return found

    def seconds_until(self, since: float | None = None, **wanted: object) -> float:
        """Return the seconds from a time, or from the start, to the first event with these fields after it."""
        since, deadline = since or self.began, time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            for at, event in self.events():
                if at >= since and wanted.items() <= event.items():
                    return at - since
            time.sleep(0.1)
        raise SystemExit(f"no event {wanted}: {self.events()[-3:]}")

    def processor_seconds(self) -> float:
        """Wait until the container has ended; returns the processor time of all that ran in it.

        From cpuacct.usage in nanoseconds, or cpu.stat of cgroup 2 in microseconds.
        """
        found = 0.0
        paths = [path for path in CGROUPS.glob(f"**/*{self.id}*") if path.is_dir()]
        while run("docker", "inspect", "--format", "{{.State.Running}}", self.id) == "true\n":
            for path in paths:
                with suppress(OSError):
                    found = max(found, int((path / "cpuacct.usage").read_text()) / 1e9)
                with suppress(OSError):
                    found = max(found, int((path / "cpu.stat").read_text().split()[1]) / 1e6)
            time.sleep(0.01)
        return found


def whole_job(job: Job) -> dict[str, float]:
    """Run a job to its end in the container; returns its start in seconds and its processor time."""
    container = Container(job)
    try:
        start = container.seconds_until(event="phase", phase="awaiting-dataset")
        with job.submit() as provider:
            spent = container.processor_seconds()
        if provider.returncode:
            raise SystemExit(f"submit ended with {provider.returncode}")
    finally:
        job.compose("down", "--volumes")
    return {"start to awaiting-dataset, s": start, "processor time in the container, s": spent}


def interrupted_job(job: Job) -> dict[str, float]:
    """Stop a job in its training and start it again; returns the seconds that each takes."""
    container = Container(job)
    try:
        container.seconds_until(event="phase", phase="awaiting-dataset")
        with job.submit() as provider:
            container.seconds_until(event="progress")
            stopped = time.time()
            run("docker", "stop", container.id)
            end = time.time() - stopped
            saved = container.seconds_until(stopped, event="checkpoint-sealed")
            container.restart()
            again = container.seconds_until(event="progress")
            resumed = container.seconds_until(event="resumed")
            if provider.wait():
                raise SystemExit(f"submit ended with {provider.returncode}")
    finally:
        job.compose("down", "--volumes")
    return {
        "stop to checkpoint sealed, s": saved,
        "stop to end, s": end,
        "start to resumed, s": resumed,
        "start to training again, s": again,
    }


def job_outside(job: Job) -> dict[str, float]:
    """Run the same job without a container; returns its processor time."""
    with tempfile.TemporaryDirectory(dir=job.folder) as ciphertext:
        command = ["run", "job.yaml", "--guest-agent", str(job.folder / "agent.sock")]
        with subprocess.Popen(
            [sys.executable, "-m", "trainer", *command, "--ciphertext-dir", ciphertext, "--restarts", "3"],
            cwd=job.folder, stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            while json.loads(process.stdout.readline()).get("phase") != "awaiting-dataset":
                pass
            with job.submit() as provider:
                process.stdout.read()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if provider.returncode or process.returncode:
            raise SystemExit(
                f"submit ended with {provider.returncode}, the job with {process.returncode}"
            )
    return {"processor time outside, s": used.ru_utime + used.ru_stime}


def measure(image: Path, steps: int, rounds: int) -> dict[str, float]:
    """Return the median of each figure."""
    built = json.loads((image / "image.json").read_bytes())
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="container-benchmark-") as name:
        job = Job(Path(name), image_name(built["digest"]), steps)
        with job.simulated():
            for _ in range(rounds):
                for figures in (whole_job(job), job_outside(job), interrupted_job(job)):
                    for title, value in figures.items():
                        found.setdefault(title, []).append(value)
    medians = {title: statistics.median(values) for title, values in found.items()}
    medians["processor time, container / outside"] = (
        medians["processor time in the container, s"] / medians["processor time outside, s"]
    )
    medians["image, MB"] = built["unpacked_bytes"] / 1e6
    medians["image, packed, MB"] = built["packed_bytes"] / 1e6
    medians["build with warm wheels, s"] = sum(built["seconds"].values())
    return {title: round(value, 3) for title, value in medians.items()}


def image_name(digest: str) -> str:
    """Return the name under which the engine has the image of a digest."""
    for line in run(
        "docker", "images", "--digests", "--format", "{{.Repository}}@{{.Digest}}"
    ).splitlines():
        if line.endswith(digest):
            return line
    raise SystemExit(f"the engine has no image {digest}: push it to a registry and pull it")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path, metavar="OUTPUT")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.image.resolve(), options.steps, options.rounds)
    if options.json:
        print(json.dumps(figures))
        return
    for title, value in figures.items():
        goal = f"   goal: at most {GOALS[title]:g}" if title in GOALS else ""
        print(f"{title:40} {value:10.3f}{goal}")


if __name__ == "__main__":
    main()
