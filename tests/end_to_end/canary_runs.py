"""One job with planted strings: real processes, the provider's steps in this process, and all that came out."""

from __future__ import annotations

import json
import secrets
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.end_to_end.canary_places import Loopback, Processes, Served
from tests.end_to_end.conftest import Agent, Job, Process, environment, wait_for
from tests.end_to_end.test_interruptions import children
from trainer import provider as steps
from trainer.attestation.result.record import Record
from trainer.data.examples.example_set import row_schema
from trainer.encoding import file_sha256
from trainer.errors import DataError, JobError, TrainerError
from trainer.provider.dataset_files import count_rows
from trainer.provider.grants import GrantRecord
from trainer.provider.opening import open_sealed_result
from trainer.provider.result_check import OpenedResult
from trainer.provider.transport.carrier import Carrier
from trainer.provider.transport.http_carrier import JobClient
from trainer.sealing.age import Identity
from trainer.sealing.grant_secrets import state_secret
from trainer.sealing.seal import seal as seal_unchecked
from trainer.spec import read_job_spec

if TYPE_CHECKING:
    from tests.end_to_end.conftest import WriteSpec
    from tests.fork_server import ForkServer

STRANGER_ASKS = (
    "/status", "/events", "/result", "/openapi.json", "/attestation", f"/attestation?nonce={'0' * 64}",
    "/dataset", "/metrics", "/nowhere",
)  # fmt: skip

STARTED_ANEW = frozenset({
    "conversations", "through_files", "two_processes", "broken_off_and_gone_on", "memory_runs_out",
    "a_worker_with_a_broken_heap", "a_killed_supervisor", "told_to_end_while_preparing",
})  # fmt: skip
"""The runs whose processes start as in a container; those of the others are forks that `/proc` shows alike."""


def plant(place: str) -> str:
    """A string that is nowhere else; safe in names of files."""
    return f"{place}-{secrets.token_hex(8)}"


@dataclass(frozen=True)
class World:
    """What all runs share.

    Args:
        disk: folder on a disk, for what an operator has.
        memory: folder on a tmpfs, for what only the provider has: nothing of it is searched.
    """

    agent: Agent
    stack_server: ForkServer
    write_spec: WriteSpec
    tiny_model: Path
    disk: Path
    memory: Path
    served: Served
    loopback: Loopback | None


@dataclass
class Canaries:
    """The strings of one run, by the place that they are planted in."""

    content: str = field(default_factory=lambda: "Inhalt-ü-" + secrets.token_hex(8))
    answer: str = field(default_factory=lambda: plant("answer"))
    system: str = field(default_factory=lambda: plant("system"))
    tool: str = field(default_factory=lambda: plant("tool"))
    bad: str = field(default_factory=lambda: plant("badrow"))
    column: str = field(default_factory=lambda: plant("column"))
    file: str = field(default_factory=lambda: plant("filename"))
    metric: str = field(default_factory=lambda: plant("metric"))
    tokenizer: str = field(default_factory=lambda: plant("tokenizer"))
    later: list[str | bytes] = field(default_factory=list)
    """Secrets that exist only once the run has begun: the identity, the token, the weights."""

    def all(self) -> list[str | bytes]:
        """Every one."""
        texts = [value for value in vars(self).values() if isinstance(value, str)]
        return [*texts, *self.later]


class Run:
    """One scenario under way. Steps are called by the scenario, in its order."""

    def __init__(self, name: str, world: World) -> None:
        self.world = world
        self.canaries = Canaries()
        self.disk, self.private = world.disk / name, world.memory / name
        self.workspace = self.private.parent / f"workspace-{name}"
        for folder in (
            self.disk / "home",
            self.disk / "cwd",
            self.private / "data",
            self.workspace,
        ):
            folder.mkdir(parents=True)
        self.ciphertext = self.disk / "ciphertext"
        self.played = [name]
        self.started_anew = name in STARTED_ANEW
        self.spooled = False
        self.earlier_port = 0
        self._processes: Processes | None = None
        self._record: Record | None = None
        self.grant: GrantRecord | None = None
        self.job: Job
        self.identity: Identity

    # the operator

    def start(
        self, *, spool: bool = False, base: Path | None = None, **sections: dict[str, object]
    ) -> None:
        """Write the spec (the model's folder has a planted name) and start the job."""
        model = self.private / self.canaries.tokenizer
        shutil.copytree(base or self.world.tiny_model, model)
        sections["model"] = {"model_name_or_path": str(model), **sections.get("model", {})}
        spec = self.world.write_spec(self.private / "job.yaml", **sections)
        self.spooled = spool
        self.ciphertext.mkdir(exist_ok=True)
        place = ["--spool" if spool else "--ciphertext-dir", str(self.ciphertext)]
        arguments = ["run", str(spec), "--guest-agent", str(self.world.agent.socket)]
        arguments += ["--workspace", str(self.workspace), *place]
        home, cwd = str(self.disk / "home"), self.disk / "cwd"
        variables = environment(HOME=home, TMPDIR=home, OMP_NUM_THREADS="1")
        out, err = self.disk / "out", self.disk / "err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process: Process
            if self.started_anew:
                command = [sys.executable, "-m", "trainer", *arguments]
                process = subprocess.Popen(
                    command, stdout=stdout, stderr=stderr, cwd=cwd, env=variables
                )
            else:
                process = self.world.stack_server.start(
                    "tests.forked_job",
                    arguments,
                    {1: stdout.fileno(), 2: stderr.fileno()},
                    environment=variables,
                    directory=cwd,
                )
        self.job = Job(process, spec, out, err, self.ciphertext, self.workspace)
        self._processes = Processes(process.pid)
        self._processes.start()

    def start_again(self, **sections: dict[str, object]) -> None:
        """Another job in the same places; what was known of the first is forgotten."""
        self.finish()
        self._record = None
        shutil.rmtree(self.private / self.canaries.tokenizer)
        self.start(spool=self.spooled, base=None, **sections)

    def pid(self, module: str) -> int:
        """Process id of a child of the job."""
        wait_for(lambda: module in children(self.job.process.pid), self.job.process)
        return children(self.job.process.pid)[module]

    def wait_end(self) -> int:
        """Exit code of the job."""
        return self.job.wait()

    # the provider

    @contextmanager
    def carrier(self) -> Iterator[Carrier]:
        """A client, pinned once the job was verified."""
        pin = self._record.result.peer_spki_sha256 if self._record else None
        client = steps.connect_to_job(
            str(self.ciphertext) if self.spooled else self.job.url, pinned_spki_sha256=pin
        )
        try:
            yield client
        finally:
            if isinstance(client, JobClient):
                client.close()

    @property
    def record(self) -> Record:
        """The job's appraisal; made at the first use."""
        if self._record is None:
            self.job.wait_for_any("awaiting-dataset", "awaiting-grant")
            policy = steps.read_policy(self._policy())
            with self.carrier() as client:
                self._record = steps.appraise_job(client, policy, cache=self.private / "cache")
            self._record.result.require_pass(self._record.result.appraised_at)
        return self._record

    def _policy(self) -> Path:
        state, path = self.world.agent.state, self.private / "policy.yaml"
        demands = steps.PolicyDemands(
            jobs=[self.job.spec],
            trust_root=state / "root.pem",
            collateral=str(state / "collateral.json"),
            measurements=[state / "measurements.json"],
            gpu_required=False,
            recipient="instance",
        )
        policy = steps.make_strict_policy(self.world.agent.app_compose.read_text("utf-8"), demands)
        text = steps.render_policy(policy, demands, beside=self.private)
        path.write_text(text)
        return path

    def rows(self, rows: list[Mapping[str, object]], name: str = "train.jsonl") -> None:
        """A data file of these rows."""
        self.file(
            name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        )

    def file(self, name: str, content: bytes) -> None:
        """A data file."""
        path = self.private / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def seal(
        self, *, expires_in: int = 3600, to: Record | None = None, secret: str | None = None
    ) -> Path:
        """Seal the data files to the job; the tool's own look at the rows is left out, as an older one might."""
        identity_file, sealed = self.private / "identity", self.private / "dataset.age"
        identity_file.unlink(missing_ok=True)  # another one for each upload
        recipient = str(steps.create_identity(identity_file).identities[0].recipient())
        (self.identity,) = steps.read_identity_file(identity_file).identities
        files = steps.find_data_files([self.private / "data"])
        now = int(time.time())
        result = (to or self.record).result
        grant = steps.make_grant(result, [recipient], now=now, seconds=expires_in, secret=secret)
        manifest = seal_unchecked(files, result, grant, sealed, now=now)
        self.grant = GrantRecord(
            grant=grant, manifest=manifest, rows=self._count_rows(files), header="-"
        )
        key = steps.read_identity_file(identity_file).provider_key
        self.canaries.later += [
            str(self.identity),
            str(key),
            grant.secret,
            state_secret(grant.secret),
        ]
        return sealed

    def _count_rows(self, files: Mapping[str, Path]) -> int:
        """The number of rows; 0 of data that only a job that fails will see."""
        try:
            return count_rows(files, row_schema(read_job_spec(self.job.spec).data)).total()
        except DataError:
            return 0

    def upload(
        self, sealed: Path | None = None, progress: Callable[[int], None] | None = None
    ) -> None:
        """Hand over the sealed dataset."""
        sealed = sealed or self.seal()
        with self.carrier() as client:
            client.upload(sealed, progress=progress)

    def watch(self) -> None:
        """Follow the job to its result, private metrics too; raises what the provider would be told."""
        assert self.grant is not None
        with self.carrier() as client:
            for _ in steps.watch_job(client, [self.identity], self.grant.events_token):
                pass

    def until_step(self) -> None:
        """Wait for an optimizer step."""
        self.job.wait_for_step("progress")

    def fetch(self) -> OpenedResult:
        """Watch, pull, open, acknowledge."""
        opened, target, envelope = self._receive("result")
        weights = self.private / "result" / "adapter" / "adapter_model.safetensors"
        if weights.exists():
            self.canaries.later.append(weights.read_bytes()[-96:-32])
        assert envelope is not None
        assert self.grant is not None
        said = steps.verify_deletion_statement(
            envelope,
            self.record,
            result_sha256=file_sha256(target),
            manifest_sha256=self.grant.manifest_sha256,
        )
        assert said.predicate.acknowledged
        return opened

    def fetch_refusal(self) -> OpenedResult:
        """The same, of a dataset that the job refuses: it goes on, and states nothing of what it destroys."""
        opened, _, envelope = self._receive(f"refusal-{len(self.played)}")
        assert envelope is None
        return opened

    def _receive(self, name: str) -> tuple[OpenedResult, Path, bytes | None]:
        self.watch()
        self._stranger()
        target = self.private / f"{name}.age"
        with self.carrier() as client:
            client.download_result(target, limit=1 << 30)
        opened = open_sealed_result(
            target, [self.identity], self.private / name, record=self.record, grant=self.grant
        )
        with self.carrier() as client:
            assert self.grant is not None
            return (
                opened,
                target,
                client.acknowledge(self.grant.acknowledgement(file_sha256(target))),
            )

    def _stranger(self) -> None:
        """What anyone may ask, as anyone may ask it."""
        if self.spooled:
            return
        anyone = ssl.create_default_context()
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        with httpx.Client(
            verify=anyone, base_url=self.job.url, timeout=0.5, trust_env=False
        ) as client:
            for path in STRANGER_ASKS:
                with suppress(httpx.HTTPError):  # `/events` does not end
                    client.get(path, headers={"Authorization": "Bearer " + "0" * 64})

    def asked_by_strangers(self) -> None:
        """A stranger asks for everything."""
        self._stranger()

    # what came out

    def finish(self) -> None:
        """End what is left, and stop watching."""
        self.job.process.kill()
        self.job.process.wait(20)
        assert self._processes is not None
        self._processes.end()

    @property
    def processes(self) -> Processes:
        """What was seen of the job's processes."""
        assert self._processes is not None
        return self._processes

    @property
    def port(self) -> int:
        """Where the job listened; 0 where it never did, or exchanged files."""
        for event in self.job.events:
            if event.get("event") == "listening":
                return int(str(event["port"]))
        return 0


def refused(action: Callable[[], object], code: str) -> None:
    """The provider is told `code`."""
    with pytest.raises(TrainerError) as caught:
        action()
    assert caught.value.code.value == code


def refused_with(run: Run, code: str) -> JobError:
    """The job refuses the dataset with a sealed report that names `code`, and goes on; returns the error in it."""
    opened = run.fetch_refusal()
    assert opened.failure is not None
    assert opened.failure.code.value == code, opened.failure
    refusals = [event for event in run.job.events if event["event"] == "dataset-refused"]
    assert refusals[-1]["code"] == code
    assert run.job.process.poll() is None
    return opened.failure


def failed_with(run: Run, code: str) -> JobError:
    """The job ends with a sealed report that names `code`; returns the error in it."""
    opened = run.fetch()
    assert opened.failure is not None
    assert opened.failure.code.value == code, opened.failure
    assert run.wait_end() == 6
    assert run.job.events[-1]["code"] == code
    return opened.failure
