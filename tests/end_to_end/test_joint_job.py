"""Three providers and one adapter: over HTTP with `submit`, and through files with a dataset that is refused."""

from __future__ import annotations

import json
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.conftest import CANARY, Job, Provider, Ran, wait_for
from tests.end_to_end.test_interruptions import free_port
from trainer.encoding import file_sha256

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Agent, StartJob, Trainer, WriteSpec

JOINT: dict[str, dict[str, object]] = {
    "output": {"samples": 0, "include_logs": False},
    "train": {"max_steps": 4, "logging_steps": 1},
}


@pytest.fixture
def providers(tmp_path: Path, trainer: Trainer, agent: Agent) -> list[Provider]:
    """Three providers, each with an identity and rows of its own: 15, 12 and 13 of them."""
    made = []
    for number in (1, 2, 3):
        folder = tmp_path / f"p{number}"
        (folder / "data").mkdir(parents=True)
        provider = Provider(folder, trainer, agent)
        provider.keygen("--x25519")
        made.append(provider)
    return made


@pytest.fixture
def parts(providers: list[Provider], rows: str) -> list[Path]:
    lines = rows.splitlines(keepends=True)
    paths = []
    for provider, chosen in zip(providers, (lines[:15], lines[15:27], lines[27:]), strict=True):
        paths.append(provider.folder / "data" / "train.jsonl")
        paths[-1].write_text("".join(chosen))
    return paths


def recipient_of(provider: Provider) -> str:
    shown = [line for line in provider.identity.read_text().splitlines() if "age1" in line]
    return "age1" + shown[0].split("age1")[1].strip()


def others(providers: list[Provider], own: Provider) -> list[str]:
    """Options of `submit` that name the other providers."""
    rest = [one for one in providers if one is not own]
    accepted = [option for one in rest for option in ("--accept", one.public_key)]
    return accepted + [option for one in rest for option in ("--share-with", recipient_of(one))]


def submit(
    trainer: Trainer, job: str, providers: list[Provider], own: Provider, output: Path
) -> Ran:
    return trainer(
        "submit", own.folder / "data", "--job-url", job, "--policy", own.policy_file, "-i", own.identity,
        "-o", output, "--job", own.folder.parent / "job.yaml", *others(providers, own), "--json",
    )  # fmt: skip


def test_three_providers_train_one_adapter_over_http(
    start_job: StartJob,
    write_spec: WriteSpec,
    providers: list[Provider],
    parts: list[Path],
    started_trainer: Trainer,
    tmp_path: Path,
    rows: str,
) -> None:
    """It is bit for bit that of a job of one provider with the same rows in the same order."""
    keys = [provider.public_key for provider in providers]
    spec = write_spec(tmp_path / "job.yaml", exchange={"providers": keys, "joint": True}, **JOINT)
    job: Job = start_job(spec)
    for provider in providers:
        provider.policy(spec)
    url, ran = job.url, {}

    def run(number: int) -> None:
        provider = providers[number]
        ran[number] = submit(started_trainer, url, providers, provider, provider.folder / "result")

    threads = [threading.Thread(target=run, args=(number,)) for number in (2, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ran[number].code for number in range(3)] == [0, 0, 0], [
        ran[number].err for number in range(3)
    ]
    assert job.wait() == 0
    results = [provider.folder / "result" for provider in providers]
    assert (
        len({file_sha256(result / "adapter" / "adapter_model.safetensors") for result in results})
        == 1
    )
    _require_no_counts(results[0])
    for number in range(3):
        assert set(ran[number].json["checks"].values()) <= {"affirmed", "not-demanded"}
    assert CANARY not in job.out.read_text()
    totals = {event["total_steps"] for event in job.events if event["event"] == "progress"}
    assert totals <= {4}, "the steps of the job spec, whatever the number of rows"
    again = started_trainer(
        "receipt", "verify", results[1], "--policy", providers[1].policy_file, "--json"
    )
    assert again.code == 0, again.err

    single = write_spec(tmp_path / "single.yaml", **JOINT)
    pooled = tmp_path / "pooled.jsonl"
    pooled.write_text(rows)
    other: Job = start_job(single)
    provider = providers[0]
    policy = provider.policy(single, name="single-policy.yaml")
    alone = started_trainer(
        "submit", pooled, "--job-url", other.url, "--policy", policy, "-i", provider.identity,
        "-o", tmp_path / "alone", "--json",
    )  # fmt: skip
    assert alone.code == 0, alone.err
    weights = [
        file_sha256(folder / "adapter/adapter_model.safetensors")
        for folder in (results[0], tmp_path / "alone")
    ]
    assert weights[0] == weights[1]


def _require_no_counts(result: Path) -> None:
    """Nothing that all providers get says how many rows there are, or shows one."""
    names = {path.relative_to(result).as_posix() for path in result.rglob("*") if path.is_file()}
    assert not any(name.startswith("logs/") for name in names)
    assert {f"receipts/provider-0{number}.age" for number in (1, 2, 3)} <= names
    summary = json.loads((result / "report" / "summary.json").read_text())
    assert (summary["rows"], summary["tokens"], summary["warnings"], summary["seconds"]) == (
        {},
        {},
        [],
        {},
    )
    assert json.loads((result / "report" / "samples.json").read_text()) == []
    assert "epoch" not in (result / "report" / "metrics.jsonl").read_text()
    assert "counts over them" not in (result / "adapter" / "README.md").read_text()
    for name in names:
        assert CANARY.encode() not in (result / name).read_bytes(), name
    assert "jsonl" not in (result / "receipt.json").read_text()


def test_one_bad_dataset_costs_the_others_nothing(
    start_job: StartJob,
    write_spec: WriteSpec,
    providers: list[Provider],
    parts: list[Path],
    trainer: Trainer,
    started_trainer: Trainer,
    tmp_path: Path,
) -> None:
    """Through files. The second provider has a row that is too long: it alone is told, and sends another."""
    keys = [provider.public_key for provider in providers]
    spec = write_spec(tmp_path / "job.yaml", exchange={"providers": keys, "joint": True}, **JOINT)
    spool = tmp_path / "spool"
    job: Job = start_job(spec, "--spool", spool)
    job.wait_event(event="phase", phase="awaiting-dataset")
    for provider in providers:
        provider.policy(spec)
    good = parts[1].read_text()
    long = {"role": "user", "content": "long " * 400}, {"role": "assistant", "content": CANARY}
    parts[1].write_text(good + json.dumps({"messages": long}) + "\n")
    ran: dict[int, Ran] = {}

    def run(number: int) -> None:
        provider = providers[number]
        ran[number] = submit(
            started_trainer, str(spool), providers, provider, provider.folder / "result"
        )

    waiting = []
    for count, number in enumerate((0, 2)):
        waiting.append(threading.Thread(target=run, args=(number,)))
        waiting[-1].start()
        wait_for(partial(has_received, job, count + 1), job.process)
    bad = submit(
        started_trainer, str(spool), providers, providers[1], providers[1].folder / "result"
    )
    assert bad.code == 6, bad.err
    assert "dataset-overlong" in bad.err
    assert "provider-02//train.jsonl, row 12" in bad.err
    assert job.wait_event(event="dataset-refused")["code"] == "dataset-overlong"
    parts[1].write_text(good)
    run(1)
    for thread in waiting:
        thread.join()
    assert [ran[number].code for number in range(3)] == [0, 0, 0], [
        ran[number].err for number in range(3)
    ]
    assert job.wait() == 0
    assert len(received(job)) == 4, "the others sent theirs once"
    for number in (0, 2):
        assert "dataset-overlong" not in ran[number].err


def test_after_a_restart_each_provider_grants_its_own_dataset_again(
    start_job: StartJob,
    write_spec: WriteSpec,
    providers: list[Provider],
    parts: list[Path],
    started_trainer: Trainer,
    tmp_path: Path,
) -> None:
    """Under the instance keys: each `submit` that runs sends kilobytes, and the job goes on."""
    keys = [provider.public_key for provider in providers]
    saving = {**JOINT, "train": {"max_steps": 60, "logging_steps": 1, "save_steps": 3}}
    spec = write_spec(
        tmp_path / "job.yaml",
        exchange={"providers": keys, "joint": True, "port": free_port()},
        **saving,
    )
    job: Job = start_job(spec)
    url = job.url
    ran: dict[int, Ran] = {}

    def run(number: int) -> None:
        provider = providers[number]
        ran[number] = submit(started_trainer, url, providers, provider, provider.folder / "result")

    for provider in providers:
        provider.policy(spec)
    submitting = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in submitting:
        thread.start()
    job.wait_for_step("checkpoint-sealed")
    job.process.kill()
    job.process.wait(20)
    again: Job = start_job(spec, "--ciphertext-dir", job.ciphertext)
    for thread in submitting:
        thread.join()
    assert [ran[number].code for number in range(3)] == [0, 0, 0], [
        ran[number].err for number in range(3)
    ]
    assert again.wait() == 0
    step = again.wait_event(event="resumed")["step"]
    assert isinstance(step, int)
    assert step >= 3
    assert received(again) == [], "no dataset was sent to the second start"
    for number in range(3):
        assert "bytes sent in place of the dataset" in ran[number].err


def has_received(job: Job, count: int) -> bool:
    return len(received(job)) >= count


def received(job: Job) -> list[object]:
    return [event for event in job.events if event["event"] == "dataset-received"]
