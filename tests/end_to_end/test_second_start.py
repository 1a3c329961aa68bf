"""A job that is started again over the same ciphertext directory: what the end record makes of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.end_to_end.conftest import (
    Job,
    Provider,
    StartJob,
    Trainer,
    WriteSpec,
    grant_beside,
    wait_for,
)
from tests.end_to_end.test_interruptions import (
    LONG,
    children,
    free_port,
    start_training,
    wait_until,
)
from trainer.simulator.faulting_link import FaultingLink


@pytest.fixture
def spec(write_spec: WriteSpec, tmp_path: Path) -> Path:
    """A short job whose port stays the same from start to start."""
    return write_spec(tmp_path / "job.yaml", train={"max_steps": 3}, exchange={"port": free_port()})


DIES_WHILE_IT_DESTROYS = """
import os
os.truncate = lambda *_: os._exit(9)
"""
"""The supervisor empties its logs after the result is sealed, as a part of what it destroys."""


def events(job: Job) -> set[object]:
    return {event["event"] for event in job.events}


def test_a_finished_result_is_offered_and_not_trained_again(
    spec: Path,
    start_job: StartJob,
    provider: Provider,
    trainer: Trainer,
    data: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(DIES_WHILE_IT_DESTROYS)
    first: Job = start_job(spec, variables={"PYTHONPATH": str(tmp_path)})
    record = start_training(first, provider, data, tmp_path)
    assert first.wait() == 9
    wait_until(lambda: not children_of_front(spec))
    sealed = (first.ciphertext / "result.tar.age").read_bytes()
    assert not (first.ciphertext / "deletion.json").exists(), "nothing is claimed that was not done"

    job: Job = start_job(spec, "--ciphertext-dir", first.ciphertext)
    job.ciphertext = first.ciphertext
    job.wait_event(event="phase", phase="awaiting-pull")
    assert not {"progress", "dataset-received"} & events(job)
    job.process.kill()
    job.process.wait(20)
    wait_until(lambda: not children_of_front(spec))
    assert {path.name for path in job.ciphertext.iterdir()} == {
        "deletion.json",
        "end.sealed",
        "result.tar.age",
    }

    again: Job = start_job(spec, "--ciphertext-dir", job.ciphertext)
    again.wait_event(event="phase", phase="awaiting-pull")
    url, now = (
        f"https://127.0.0.1:{again.wait_event(event='listening')['port']}",
        tmp_path / "now.json",
    )
    assert trainer("verify", url, "--policy", provider.policy_file, "-o", now).code == 0
    pulled = trainer(
        "pull",
        url,
        "--policy",
        provider.policy_file,
        "--attestation",
        now,
        "-o",
        tmp_path / "result.age",
    )
    assert pulled.code == 0, pulled.err
    grant, deletion = grant_beside(record), tmp_path / "deletion.json"
    acknowledged = trainer(
        "ack",
        url,
        "--policy",
        provider.policy_file,
        "--attestation",
        now,
        "--grant",
        grant,
        "--result",
        tmp_path / "result.age",
        "-o",
        deletion,
    )
    assert acknowledged.code == 0, acknowledged.err
    assert again.wait() == 0
    assert not {"progress", "dataset-received"} & events(again)
    assert (tmp_path / "result.age").read_bytes() == sealed
    opened = provider.open(tmp_path / "result.age", tmp_path / "out", record)
    assert opened.code == 0, opened.err
    # The second start has another receipt key than the one that trained; its quote is what the provider verified.
    statement = json.loads((job.ciphertext / "deletion.json").read_bytes())
    assert statement == json.loads(deletion.read_bytes())
    claimed = json.loads(record.read_bytes())["evidence"]["claims"]["receipt_key"]
    assert statement["evidence"]["claims"]["receipt_key"] != claimed

    third: Job = start_job(spec, "--ciphertext-dir", job.ciphertext)
    assert third.wait() == 0, "acknowledged: nothing is left to do"
    assert third.events[-1]["phase"] == "done"
    assert "progress" not in events(third)


def children_of_front(spec: Path) -> list[int]:
    """Process ids that still listen for this spec's job: the front ends after its supervisor."""
    found = []
    port = next(
        line.split()[1]
        for line in spec.read_text().splitlines()
        if line.strip().startswith("port:")
    )
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if b"trainer.front" in words and f'"port":{port}'.encode() in words:
            found.append(int(path.parent.name))
    return found


def test_a_failure_for_good_is_not_repeated_until_the_provider_knows_of_it(
    write_spec: WriteSpec, start_job: StartJob, provider: Provider, trainer: Trainer, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path / "job.yaml", exchange={"port": free_port(), "dataset_tries": 1})
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "user", "content": "only a question"}]}\n' * 3)
    job: Job = start_job(spec)
    record = provider.deliver(job, bad, tmp_path)
    code = job.wait_event(event="failed")["code"]
    job.process.kill()
    job.process.wait(20)
    wait_until(lambda: not children_of_front(spec))

    again: Job = start_job(spec, "--ciphertext-dir", job.ciphertext)
    assert again.wait_event(event="failed")["code"] == code
    now = tmp_path / "now.json"
    url = f"https://127.0.0.1:{again.wait_event(event='listening')['port']}"
    assert trainer("verify", url, "--policy", provider.policy_file, "-o", now).code == 0
    again_report = pull_failure_of(again, url, provider, trainer, now, record, tmp_path)
    assert again_report["code"] == code
    assert "dataset-received" not in events(again)

    third: Job = start_job(spec, "--ciphertext-dir", job.ciphertext)
    third.wait_event(event="phase", phase="awaiting-dataset")


def pull_failure_of(
    job: Job,
    url: str,
    provider: Provider,
    trainer: Trainer,
    now: Path,
    record: Path,
    tmp_path: Path,
) -> dict[str, object]:
    result = tmp_path / "failure.age"
    pulled = provider.pull(url, now, result, record)
    assert pulled.code == 0, pulled.err
    assert job.wait() == 6
    opened = provider.open(result, tmp_path / "failure", record)
    assert opened.code == 6
    report = json.loads((tmp_path / "failure" / "report" / "failure.json").read_bytes())
    assert isinstance(report, dict)
    return report


def test_a_dataset_for_a_key_that_is_gone_is_granted_again_in_kilobytes(
    write_spec: WriteSpec,
    start_job: StartJob,
    provider: Provider,
    trainer: Trainer,
    data: Path,
    tmp_path: Path,
) -> None:
    """Counted at the socket: TLS, evidence and re-grant, for a dataset of some MiB."""
    large = tmp_path / "train.jsonl"
    large.write_text(data.read_text() * 400)
    spec = write_spec(
        tmp_path / "job.yaml",
        train=LONG,
        exchange={"port": free_port(), "max_upload_bytes": 1 << 23},
    )
    job: Job = start_job(spec)
    record, sealed = tmp_path / "attestation.json", job.ciphertext / "dataset.age"
    recipient, policy = provider.keygen(), provider.policy(spec)
    for step in (
        ("verify", job.url, "--policy", policy, "-o", record),
        ("seal", large, "--policy", policy, "--attestation", record, "-r", recipient, "-o", sealed),
    ):
        ran = trainer(*step)
        assert ran.code == 0, ran.err
    job.process.kill()  # as after an upload: what `seal` wrote lies where one leaves it
    job.process.wait(20)
    again: Job = start_job(spec, "--ciphertext-dir", job.ciphertext)
    again.wait_event(event="phase", phase="awaiting-grant")
    assert "failed" not in events(again)
    retained = job.ciphertext / "retained-dataset.age"
    assert retained.stat().st_size > 2 << 20
    grant = grant_beside(sealed)
    port = again.wait_event(event="listening")["port"]
    assert isinstance(port, int)
    with FaultingLink(port) as link:
        arguments = (
            "regrant", grant, "--job-url", f"https://127.0.0.1:{link.port}", "--policy", provider.policy_file,
            "-i", provider.identity, "--json",
        )  # fmt: skip
        granted = trainer(*arguments)
        assert granted.code == 0, granted.err
        assert link.sent_up + link.sent_down < 64 << 10
        late = trainer(*arguments)
    assert (granted.json["phase"], granted.json["bytes"] < 8 << 10) == ("training", True)
    assert late.code == 3, "it waits for none"
    assert "wrong-phase" in late.err
    assert not retained.exists()


def supervisor_of(job: Job) -> int:
    """Process id of the supervisor below the parent that restarts it."""
    found = Path(f"/proc/{job.process.pid}/task/{job.process.pid}/children").read_text().split()
    assert len(found) == 1
    return int(found[0])


def resumed_steps(job: Job) -> list[int]:
    """The steps behind which the job went on, in order."""
    steps = (event["step"] for event in job.events if event["event"] == "resumed")
    return [step for step in steps if isinstance(step, int)]


def test_lost_processes_cost_time_and_nothing_else(
    write_spec: WriteSpec,
    start_job: StartJob,
    kms_provider: Provider,
    trainer: Trainer,
    data: Path,
    tmp_path: Path,
) -> None:
    """Each of the three in turn: `--restarts`, and data sealed to the derived key. The job needs nobody."""
    saving = {"max_steps": 1000, "save_steps": 5}  # seven seconds of training on a fast machine
    spec = write_spec(
        tmp_path / "job.yaml", train=saving, exchange={"port": free_port(), "linger_seconds": 20}
    )
    provider = kms_provider
    job: Job = start_job(
        spec, "--restarts", "3", guest_agent=provider.agent.socket, started_anew=True
    )
    record = start_training(job, provider, data, tmp_path, "--recipient", "derived")
    resumed: list[int] = []
    for victim in ("trainer.worker", "trainer.front", "supervisor"):
        job.wait_for_step("checkpoint-sealed", resumed[-1] + 1 if resumed else 1)
        supervisor = supervisor_of(job)
        os.kill(
            supervisor if victim == "supervisor" else children(supervisor)[victim], signal.SIGKILL
        )
        wait_for(lambda: len(resumed_steps(job)) > len(resumed), job.process)  # noqa: B023 -- waited for here
        resumed = resumed_steps(job)
    assert resumed == sorted(resumed)
    assert resumed[0] >= 5
    job.wait_event(event="phase", phase="awaiting-pull")
    url, now = f"https://127.0.0.1:{spec_port(job)}", tmp_path / "now.json"
    verified = trainer("verify", url, "--policy", provider.policy_file, "-o", now)
    assert verified.code == 0, verified.err
    pulled = provider.pull(url, now, tmp_path / "result.age", record)
    assert pulled.code == 0, pulled.err
    assert job.wait() == 0
    opened = provider.open(tmp_path / "result.age", tmp_path / "out", record)
    assert opened.code == 0, opened.err
    summary = json.loads((tmp_path / "out" / "report" / "summary.json").read_bytes())
    assert summary["resumed_at"] == resumed


def spec_port(job: Job) -> object:
    return [event for event in job.events if event["event"] == "listening"][-1]["port"]
