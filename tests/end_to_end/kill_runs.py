"""Carries out a plan of `kill_plans`: a job, its operator, and its provider.

The operator starts the job again whenever it ended with another code than 0, as a container engine does; the
provider repeats the same command until it ends with 0. Beside that they only make room on a full disk.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.end_to_end.conftest import CANARY, environment
from tests.end_to_end.kill_plans import (
    CLIENT,
    FILE_MOMENTS,
    FILES,
    HTTP,
    LINK,
    STORE,
    Incident,
    Plan,
)
from tests.end_to_end.test_interruptions import children, free_port
from trainer.simulator.faulting_link import FaultingLink

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Job, Provider, StartJob
    from tests.exchange.stores import SeaweedServer
    from tests.fork_server import ForkedProcess, ForkServer

SECONDS: Final = 150.0
"""For a run; one takes five to fifteen on a quiet machine."""
WAIT_SECONDS: Final = 20.0
"""For which the provider's command waits for a job that does not answer."""
POLL_SECONDS: Final = 0.02
MAX_STARTS: Final = 12
"""Of the job, and of the command: an incident costs each at most two."""

CLEAR_CODES: Final = {0, 3, 6}
"""Exit codes of the command that mean: repeat it. 6: the job reports that it was interrupted."""
CLEAR_FAILURES: Final = {
    "interrupted",
    "worker-died",
    "front-died",
    "store-sync-died",
    "store-unavailable",
    "storage-full",
    "model-unavailable",
}
"""What a job may say when it ends, all of which another start goes on from."""


@dataclass
class KillRun:
    """One run.

    Args:
        plan: what happens.
        folder: empty directory for everything that this run leaves behind.
        spec: job spec.
        policy: the provider's, for it.
        where: port of the job, or location of the store, in it.
        data: what the provider submits.
        provider: with keys and a policy for the spec.
        start_job: starts the job.
        fork_server: starts the command.
        store: the server of the store, if the exchange goes through one.
    """

    plan: Plan
    folder: Path
    spec: Path
    policy: Path
    where: int | str
    data: Path
    provider: Provider
    start_job: StartJob
    fork_server: ForkServer
    store: SeaweedServer | None = None
    job: Job = field(init=False)
    starts: list[Job] = field(default_factory=list)
    commands: int = 0
    happened: list[str] = field(default_factory=list)
    printed: list[Path] = field(default_factory=list)
    _link: FaultingLink | None = None
    _command: ForkedProcess = field(init=False)
    _scarce: list[Path] = field(default_factory=list)
    _moments: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.job_disk, self.provider_disk = self.folder / "job-disk", self.folder / "provider-disk"
        self._pending = list(self.plan.incidents)

    @property
    def output(self) -> Path:
        """Directory of the opened result."""
        return self.provider_disk / "result"

    def carry_out(self) -> bytes:
        """Runs to the end of the command that ends with 0, and of the job; returns the adapter.

        Raises:
            AssertionError: something else happened than is promised.
        """
        self._mount(self.job_disk, self.plan.job_kib)
        self._mount(self.provider_disk, self.plan.provider_kib)
        try:
            if self.plan.carrier == HTTP:
                cut = self.plan.cut_every
                self._link = FaultingLink(int(self.where), port=free_port(), next_cut=lambda: cut)
            self._start_job()
            self._start_command()
            self._drive()
            self._require_ended_cleanly()
            return (self.output / "adapter" / "adapter_model.safetensors").read_bytes()
        except AssertionError as error:
            raise AssertionError(
                f"{error}; {self.plan}; happened: {self.happened}; see {self.folder}"
            ) from error
        finally:
            self._close()

    def _mount(self, folder: Path, kib: int | None) -> None:
        folder.mkdir()
        if kib is not None:
            options = f"size={kib}k"
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False
            )
            # Elsewhere the disk is not small, and the rest of the plan holds.
            if done.returncode == 0:
                self._scarce.append(folder)

    def _start_job(self) -> None:
        place = ("--spool" if self.plan.carrier == FILES else "--ciphertext-dir", self.job_disk)
        restarts = ("--restarts", self.plan.restarts) if self.plan.restarts else ()
        self.job = self.start_job(
            self.spec,
            *place,
            *restarts,
            guest_agent=self.provider.agent.socket,
            variables=self._store_variables(),
        )
        self.starts.append(self.job)
        assert len(self.starts) <= MAX_STARTS, "the job does not get on"

    def _store_variables(self) -> dict[str, str]:
        return {} if self.store is None else self.store.environment

    def _job_location(self) -> object:
        if self._link is not None:
            return f"https://127.0.0.1:{self._link.port}"
        return self.where if self.store is not None else self.job_disk

    def _start_command(self) -> None:
        self.commands += 1
        assert self.commands <= MAX_STARTS, "the command does not get on"
        self.printed.append(self.folder / f"printed{self.commands}")
        words = [
            "submit", self.data, "--job-url", self._job_location(), "--policy", self.policy,
            "-i", self.provider.identity, "-o", self.output, "--wait", WAIT_SECONDS,
        ]  # fmt: skip
        with self.printed[-1].open("wb") as stream:
            self._command = self.fork_server.start(
                "trainer",
                [str(word) for word in words],
                {1: stream.fileno(), 2: stream.fileno()},
                environment=environment(
                    XDG_CACHE_HOME=str(self.folder / "cache"), **self._store_variables()
                ),
            )

    def _drive(self) -> None:
        deadline = time.monotonic() + SECONDS
        while True:
            assert time.monotonic() < deadline, "it hangs"
            self._note_moments()
            for incident in list(self._pending):
                came = self._moments.get(incident.moment)
                if came is not None and time.monotonic() >= came + incident.delay:
                    self._pending.remove(incident)
                    self._carry_out_incident(incident)
            if (code := self._command.poll()) is not None:
                if code == 0 or (code < 0 and self._has_finished()):
                    return
                self._require_clear(code)
                self._make_room()
                self._start_command()
            if (code := self.job.process.poll()) is not None and code != 0:
                self._require_job_ended()
                self._make_room()
                self._start_job()
            if self.store is not None and not self.store.is_running():
                self.store.start()
            time.sleep(POLL_SECONDS)

    def _has_finished(self) -> bool:
        """Returns whether the result is in place and nothing else is left: a kill may come right after that."""
        submission = self.output.with_name(self.output.name + ".submission")
        return self.output.exists() and not submission.exists()

    def _note_moments(self) -> None:
        now = time.monotonic()
        for event in self.job.events:
            for name in (str(event["event"]), str(event.get("phase"))):
                self._moments.setdefault(name, now)
            if event.get("code") == "storage-full" and self._scarce:
                self._moments.setdefault("storage-full", now)
        submission = self.output.with_name(self.output.name + ".submission")
        for name in FILE_MOMENTS:
            if (submission / name).exists():
                self._moments.setdefault(name, now)
        # A job that waits for room does not end: its operator watches the disk.
        if self._scarce and now > self._moments.get("sealing", now) + 3:
            self._make_room()

    def _carry_out_incident(self, incident: Incident) -> None:
        if incident.victim == LINK:
            assert self._link is not None
            self._link.cut()
            self.happened.append(str(incident))
            return
        victim = self._process_ids().get(incident.victim)
        if victim is None:
            self.happened.append(f"({incident}: it did not run)")
            return
        with suppress(ProcessLookupError):
            os.kill(victim, incident.number)
            self.happened.append(str(incident))

    def _process_ids(self) -> dict[str, int]:
        found = {CLIENT: self._command.pid} if self._command.poll() is None else {}
        if self.store is not None and self.store.process is not None and self.store.is_running():
            found[STORE] = self.store.process.pid
        if self.job.process.poll() is None:
            found["supervisor"] = self.job.process.pid
            with suppress(OSError):
                below = children(self.job.process.pid)
                if self.plan.restarts:  # between two starts there is no supervisor
                    found.pop("supervisor")
                    if (supervisor := below.get("trainer")) is not None:
                        found["supervisor"], below = supervisor, children(supervisor)
                found |= {name.removeprefix("trainer."): pid for name, pid in below.items()}
        return found

    def _require_clear(self, code: int) -> None:
        text = self.printed[-1].read_text("utf-8", "replace")
        if code in {-signal.SIGKILL, -signal.SIGTERM}:
            return
        # The provider's own disk: the error of a local file, which says so.
        if not (code == 2 and self.plan.provider_kib and "No space left on device" in text):
            assert code in CLEAR_CODES, f"exit code {code}: {text}"
        assert "error[" in text, f"exit code {code} without an explanation: {text}"
        assert "Traceback" not in text, text

    def _require_job_ended(self) -> None:
        said = {str(event["code"]) for event in self.job.events if event["event"] == "failed"}
        assert said <= CLEAR_FAILURES, f"the job says {said}"
        wait_gone(self.job, self.job_disk)

    def _make_room(self) -> None:
        for folder in self._scarce:
            subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
        self._scarce.clear()

    def _require_ended_cleanly(self) -> None:
        # The result is here: a job that was killed since is started once more by nobody.
        self.job.process.wait(SECONDS)
        assert not self.output.with_name(self.output.name + ".submission").exists()
        left = [path for job in self.starts[-1:] for path in job.workspace.iterdir()]
        assert left == [] or self.job.process.poll() != 0, left
        self._require_nothing_readable()

    def _require_nothing_readable(self) -> None:
        printed = [path for job in self.starts for path in (job.out, job.err)]
        folders = [self.job_disk, *([self.store.folder / "data"] if self.store is not None else [])]
        stored = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        assert [path for path in (*printed, *stored) if CANARY.encode() in path.read_bytes()] == []

    def _close(self) -> None:
        if self._link is not None:
            self._link.close()
        with suppress(AttributeError):
            self._command.kill()
        for job in self.starts:
            job.process.kill()
            job.process.wait(20)
        for folder in (self.job_disk, self.provider_disk):
            if folder.is_mount():
                subprocess.run(["umount", "--lazy", folder], check=True)


def wait_gone(job: Job, disk: Path) -> None:
    """Waits until no process of an ended job is left, as its container does not end before."""
    deadline = time.monotonic() + 20
    homes = [f"HOME={place}".encode() for place in (job.workspace, disk)]
    while any(home in variables for variables in all_variables() for home in homes):
        assert time.monotonic() < deadline, "a process of the job stays"
        time.sleep(POLL_SECONDS)


def all_variables() -> list[bytes]:
    """Returns the environment of every process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            found.append(path.read_bytes())
    return found
