"""One whole job on this machine, nothing of it pretended but the TEE itself.

A simulated guest agent signs quotes with a development root that only this demo's policy names. Everything else
is what runs in production: the job's three processes, the attestation checks, the encryption, the upload over TLS,
the training of SmolLM2-135M-Instruct on real questions and answers, the signed receipt. In the end the adapter is
loaded with stock PEFT, its loss is taken again, and the sealed result is opened with another age implementation.

Everything lies under .demo/ (made anew each time) and .cache/ (the converted model, kept).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from demo_age import NoOtherAgeError, list_with_other_age
from demo_processes import Deadline, DemoError, Processes, raise_on_termination

T = TypeVar("T")

CACHE: Final = Path(".cache")
DEMO: Final = Path(".demo")
SPEC: Final = Path("configs/demo.yaml")
JOB: Final = DEMO / "job.yaml"
COMPOSE: Final = Path("configs/docker-compose.yaml")
MODEL: Final = CACHE / "models" / "SmolLM2-135M-Instruct"
MEMORY_BYTES: Final = 1 << 30
PASSED: Final = frozenset({"affirmed", "not-demanded", "skipped"})


class Demo:
    """The steps of the demo, in the order in which `play` runs them."""

    def __init__(self, processes: Processes, workspace: Path, *, x25519: bool) -> None:
        self.run = processes
        self.workspace = workspace
        self.x25519 = x25519
        self.seconds: dict[str, float] = {
            "environment": float(os.environ.get("DEMO_ENVIRONMENT_SECONDS", "0"))
        }
        self.checks: dict[str, str] = {}

    def play(self) -> dict[str, Any]:
        """Run all steps; returns the object that `--json` prints.

        Raises:
            DemoError: a step failed.
        """
        started = time.monotonic()
        self._timed("prepare", self.prepare)
        simulator = self._timed("simulator", self.start_simulator)
        job, address = self._timed("job-ready", self.start_job)
        self._timed("verify", lambda: self.verify(address))
        submitted = self._timed("submit", lambda: self.submit(address))
        self._timed("job-end", lambda: self.end_job(job))
        simulator.terminate()
        self._timed("check", lambda: self.check(submitted))
        self.seconds["total"] = round(time.monotonic() - started + self.seconds["environment"], 1)
        return self.outcome(submitted)

    def _timed(self, name: str, step: Callable[[], T]) -> T:
        started = time.monotonic()
        result = step()
        self.seconds[name] = round(time.monotonic() - started, 1)
        return result

    # the operator

    def prepare(self) -> None:
        """Prepare model and data, and render the operator's app-compose.json with job.yaml inside."""
        self.run.say("— prepare: model (once), data, and the text that will be measured")
        self.run.foreground(
            sys.executable, "scripts/prepare_demo.py", str(CACHE), seconds=300, shown=False
        )
        shutil.copyfile(CACHE / "faq-en.jsonl", DEMO / "train.jsonl")
        # The job spec's model path is relative to the job spec.
        shutil.copyfile(SPEC, JOB)
        (DEMO / "models").symlink_to((CACHE / "models").resolve())
        self.run.foreground(
            "trainer", "job", "render", str(JOB), str(COMPOSE), "-o", str(DEMO / "app-compose.json"), seconds=30,
        )  # fmt: skip

    def start_simulator(self) -> Any:
        """Start the development guest agent in place of a confidential VM's."""
        self.run.say("\n— the operator: a (simulated) confidential VM, and the job in it")
        process = self.run.background(
            "simulate", "trainer", "simulate", "--socket", str(DEMO / "dstack.sock"),
            "--state", str(DEMO / "state"), "--app-compose", str(DEMO / "app-compose.json"),
        )  # fmt: skip
        self.run.wait_until(
            "the simulated guest agent", process, DEMO / "dstack.sock", "", seconds=60
        )
        return process

    def start_job(self) -> tuple[Any, str]:
        """Start the job and wait until it accepts a dataset; returns its process and address."""
        process = self.run.background(
            "job", "trainer", "run", str(JOB), "--guest-agent", str(DEMO / "dstack.sock"),
            "--ciphertext-dir", str(DEMO / "ciphertext"), "--workspace", str(self.workspace),
        )  # fmt: skip
        events = DEMO / "logs" / "job.stdout"
        listening = self.run.wait_until("the job", process, events, '"listening"', seconds=60)
        self.run.wait_until("the job", process, events, '"awaiting-dataset"', seconds=120)
        for line in events.read_text("utf-8").splitlines():
            self.run.say(f"  job: {line}")
        return process, f"https://127.0.0.1:{json.loads(listening)['port']}"

    def end_job(self, process: Any) -> None:
        """Wait for the job to end after the acknowledgement; its workspace must be empty."""
        code = self.run.wait(process, seconds=60)
        self.note("demo-job-exit-code-0", code == 0)
        self.note("demo-workspace-removed", not any(self.workspace.iterdir()))

    # the data provider

    def verify(self, address: str) -> None:
        """Make the provider's key and a policy that demands the reviewed files, and verify the job."""
        self.run.say("\n— the data provider: key, policy, verification")
        kind = ["--x25519"] if self.x25519 else []
        self.run.foreground(
            "trainer", "keygen", "-o", str(DEMO / "provider.key"), *kind, "--json", seconds=30
        )
        state = DEMO / "state"
        self.run.foreground(
            "trainer", "policy", "init", "--app-compose", str(DEMO / "app-compose.json"), "--job", str(JOB),
            "--trust-root", str(state / "root.pem"), "--collateral", str(state / "collateral.json"),
            "--measurements", str(state / "measurements.json"), "--no-gpu", "-o", str(DEMO / "policy.yaml"),
            seconds=30,
        )  # fmt: skip
        self.run.foreground(
            "trainer", "verify", address, "--policy", str(DEMO / "policy.yaml"),
            "-o", str(DEMO / "attestation.json"), seconds=60,
        )  # fmt: skip

    def submit(self, address: str) -> dict[str, Any]:
        """Run `trainer submit`: verify → seal → upload → watch → pull → open."""
        self.run.say("\n— the data provider: submit, and wait for the adapter")
        lines = self.run.foreground(
            "trainer", "submit", str(DEMO / "train.jsonl"), "--job-url", address,
            "--policy", str(DEMO / "policy.yaml"), "-i", str(DEMO / "provider.key"), "-o", str(DEMO / "result"),
            "--json", seconds=600, as_json=True,
        )  # fmt: skip
        submitted = json.loads(lines[-1])
        if not isinstance(submitted, dict):
            raise DemoError("`trainer submit --json` did not end with a JSON object")
        self.checks |= submitted["checks"]
        return submitted

    # independent checks

    def check(self, submitted: dict[str, Any]) -> None:
        """Check the result with tools that share no training or sealing code with this project."""
        self.run.say("\n— checked again, by other means")
        summary = submitted["summary"]
        self.note("demo-loss-fell", summary["eval_loss_after"] < summary["eval_loss_before"])
        adapter = Path(submitted["adapter_dir"])
        names = ("adapter_config.json", "adapter_model.safetensors")
        self.note(
            "demo-adapter-is-there", all((adapter / name).stat().st_size > 0 for name in names)
        )
        self.note("demo-report-agrees", self._report_agrees(adapter.parent, summary))
        self.note("demo-nothing-readable-outside", not self._readable_rows())
        self.run.foreground(
            "python", "scripts/check_adapter.py", str(adapter.parent), "--model", str(MODEL),
            "--data", str(DEMO / "train.jsonl"), "--job", str(JOB), seconds=480,
        )  # fmt: skip
        self.note("demo-stock-peft-same-loss", True)  # otherwise the command failed and raised
        self._check_age(adapter.parent)

    def _report_agrees(self, result: Path, summary: dict[str, Any]) -> bool:
        written = json.loads((result / "report" / "summary.json").read_bytes())
        return all(
            written[name] == summary[name] for name in ("eval_loss_before", "eval_loss_after")
        )

    def _readable_rows(self) -> list[str]:
        """Return the operator's files that contain the beginning of an answer from the dataset."""
        rows = (DEMO / "train.jsonl").read_text("utf-8").splitlines()
        answers = sorted(
            {json.loads(row)["messages"][-1]["content"][:40] for row in rows}, key=len
        )[-50:]
        needles = [answer.encode() for answer in answers]
        places = [
            path for name in ("ciphertext", "logs", "state") for path in (DEMO / name).rglob("*")
        ]
        contents = ((path, path.read_bytes()) for path in places if path.is_file())
        return [str(path) for path, data in contents if any(needle in data for needle in needles)]

    def _check_age(self, result: Path) -> None:
        sealed = DEMO / "ciphertext" / "result.tar.age"
        expected = {str(path.relative_to(result)) for path in result.rglob("*") if path.is_file()}
        try:
            tool, names = list_with_other_age(
                self.run, sealed, DEMO / "provider.key", CACHE / "age-interop"
            )
        except NoOtherAgeError as reason:
            self.run.say(f"skipped   demo-stock-age-opens-result: {reason}")
            self.checks["demo-stock-age-opens-result"] = "skipped"
            return
        self.run.say(f"{tool} lists {len(names)} files in the sealed result")
        self.note("demo-stock-age-opens-result", names == expected)

    def note(self, code: str, passed: bool) -> None:
        """Record and print one of the demo's own checks.

        Raises:
            DemoError: it did not pass.
        """
        self.checks[code] = "affirmed" if passed else "contraindicated"
        self.run.say(f"{'passed' if passed else 'FAILED':9} {code}")
        if not passed:
            raise DemoError(f"{code} does not hold; what happened lies in {DEMO}")

    def outcome(self, submitted: dict[str, Any]) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        summary = submitted["summary"]
        wrong = {code: state for code, state in self.checks.items() if state not in PASSED}
        if wrong:
            raise DemoError(f"not all checks passed: {wrong}")
        return {
            "checks": self.checks,
            "eval_loss_before": summary["eval_loss_before"],
            "eval_loss_after": summary["eval_loss_after"],
            "adapter_dir": str(Path(submitted["adapter_dir"]).resolve()),
            "trained_tokens": summary["trained_tokens"],
            "seconds": {
                **self.seconds,
                **{f"submit.{name}": s for name, s in submitted["seconds"].items()},
            },
        }


def memory_directory() -> Path:
    """Return a tmpfs with room for the model and the output of training.

    Raises:
        DemoError: this machine has none.
    """
    named = [os.environ.get("XDG_RUNTIME_DIR", ""), "/run/trainer", "/dev/shm", "/run", "/tmp"]
    for path in (Path(name) for name in named if name):
        usable = path.is_dir() and os.access(path, os.W_OK) and is_memory(path)
        if usable and shutil.disk_usage(path).free >= MEMORY_BYTES:
            return path
    raise DemoError(
        "expected a tmpfs with 1 GiB free, got none; hint: in a container, --shm-size=2g"
    )


def is_memory(path: Path) -> bool:
    """Return whether `path` is on a tmpfs."""
    done = subprocess.run(
        ["stat", "-f", "-c", "%T", str(path)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() == "tmpfs"


def show(processes: Processes, found: dict[str, Any]) -> None:
    """Print the summary of the demo."""
    processes.say()
    states = list(found["checks"].values())
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    processes.say(
        f"held-out loss   {found['eval_loss_before']:.3f} → {found['eval_loss_after']:.3f}"
    )
    processes.say(f"trained tokens  {found['trained_tokens']}")
    processes.say(f"checks          {counts}: {', '.join(found['checks'])}")
    processes.say(f"adapter         {found['adapter_dir']}")
    processes.say(
        f"seconds         {', '.join(f'{name} {value}' for name, value in found['seconds'].items())}"
    )


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on the last line of standard output"
    )
    parser.add_argument(
        "--x25519", action="store_true", help="a provider's key that old age tools understand"
    )
    parser.add_argument(
        "--timeout", type=float, default=900, help="seconds for all of it (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the demo; returns 0 if every check passed, 1 if not, 130 if it was interrupted."""
    options = parse(arguments)
    raise_on_termination()
    shutil.rmtree(DEMO, ignore_errors=True)
    (DEMO / "logs").mkdir(mode=0o700, parents=True)
    out = sys.stderr if options.json else sys.stdout
    try:
        with (
            tempfile.TemporaryDirectory(
                prefix="trainer-demo-", dir=memory_directory()
            ) as workspace,
            Processes(out, DEMO / "logs", Deadline(options.timeout)) as processes,
        ):
            found = Demo(processes, Path(workspace), x25519=options.x25519).play()
            show(processes, found)
    except DemoError as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
