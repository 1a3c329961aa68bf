"""The whole path with the real processes: what a provider types, and what comes out at either end."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Job, Provider, StartJob, Trainer, WriteSpec

CANARY = b"xylophonequartz"


def files_below(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def test_submit_brings_a_checked_adapter_and_nothing_leaks(
    start_job: StartJob,
    write_spec: WriteSpec,
    provider: Provider,
    started_trainer: Trainer,
    trainer: Trainer,
    data: Path,
    tmp_path: Path,
) -> None:
    """`submit` starts as a person starts it, interpreter and all."""
    provider.keygen()
    spec = write_spec(
        tmp_path / "job.yaml",
        output={"samples": 3, "sample_max_new_tokens": 32},
        exchange={"providers": [provider.public_key]},
    )
    job: Job = start_job(spec, started_anew=True)
    policy = provider.policy(spec)
    result = tmp_path / "result"

    ran = started_trainer(*provider.submission(job, data, result), "--json")

    assert ran.code == 0, ran.err
    assert job.wait() == 0
    assert set(ran.json["checks"].values()) <= {"affirmed", "not-demanded"}
    assert ran.json["checks"]["root-of-trust"] == "affirmed"
    assert ran.json["checks"]["key-provider"] == "affirmed"
    assert ran.json["development_root"] is True
    assert "DEVELOPMENT ROOT" in ran.err
    summary = ran.json["summary"]
    assert isinstance(summary, dict)
    assert summary["eval_loss_after"] < summary["eval_loss_before"]
    before, after = summary["eval_loss_before"], summary["eval_loss_after"]
    assert ran.json["loss"] == f"{before:.5g} → {after:.5g} on held-out rows"
    assert Path(ran.json["report"]).is_file()
    assert (Path(ran.json["record"]) / "record.json").is_file()
    assert (
        ran.json["next"]
        == f"trainer try {result} PROMPT --model DIR, or: trainer receipt show {result}"
    )
    assert (result / "adapter" / "adapter_model.safetensors").stat().st_size > 0
    names = {path.relative_to(result).as_posix() for path in files_below(result)}
    assert {
        "receipt.json",
        "evidence.json",
        "report/report.html",
        "report/summary.json",
        "logs/job.log",
    } <= names
    assert not (tmp_path / "result.submission").exists()
    assert ran.json["deletion"]["acknowledged"]
    assert (tmp_path / "result.deletion.json").exists()
    again = trainer("receipt", "verify", result, "--policy", policy, "--json")
    assert again.code == 0, again.err
    assert again.json["deletion"] == ran.json["deletion"]
    before, now = ran.json["checks"].items(), again.json["checks"].items()
    # Known to the provider alone.
    assert {code for code, _ in before ^ now} == {
        "nonce",
        "nonce-unused",
    }

    # What the operator has: public events, ciphertext, an empty workspace.
    assert {event["event"] for event in job.events} <= {
        "spec", "phase", "listening", "dataset-received", "preparation", "progress", "result-sealed",
    }  # fmt: skip
    assert job.err.read_bytes() == b""
    assert list(job.workspace.iterdir()) == []
    for path in [*files_below(job.ciphertext), job.out]:
        content = path.read_bytes()
        assert CANARY not in content, path
        assert b"loss" not in content, path


def test_single_steps_through_files(
    start_job: StartJob,
    write_spec: WriteSpec,
    provider: Provider,
    trainer: Trainer,
    data: Path,
    tmp_path: Path,
) -> None:
    """Everything by hand, with X25519 keys and a directory in place of a network; stock age opens the result.

    The job lists its provider: it takes neither an upload without an authorisation nor an unsigned dataset.
    """
    recipient, spool = provider.keygen("--x25519"), tmp_path / "spool"
    spec = write_spec(tmp_path / "job.yaml", exchange={"providers": [provider.public_key]})
    job: Job = start_job(spec, "--spool", spool, started_anew=True)
    job.wait_event(event="phase", phase="awaiting-dataset")
    policy, attestation = provider.policy(spec), tmp_path / "attestation.json"
    sealed, result = tmp_path / "dataset.age", tmp_path / "result.tar.age"
    unsigned, signing = tmp_path / "unsigned.age", ("-i", provider.identity)
    judged = ("--policy", policy, "--attestation", attestation)

    steps = [
        ("verify", spool, "--policy", policy, "-o", attestation),
        ("validate", data, "--job", spec),
        ("seal", data, *judged, "-r", recipient, "-o", unsigned),
        ("upload", unsigned, "--job-url", spool, *judged),
        ("upload", unsigned, "--job-url", spool, *judged, *signing),
        ("watch", spool, *judged),
        ("seal", data, *judged, "-r", recipient, "-o", sealed, "--job", spec, *signing),
        ("upload", sealed, "--job-url", spool, *judged, *signing),
        (
            "watch", spool, "--policy", policy, "--attestation", attestation, "-i", provider.identity,
            "--grant", f"{sealed}.grant.json", "--json",
        ),
        (
            "pull", spool, "--policy", policy, "--attestation", attestation, "-o", result,
            "--grant", f"{sealed}.grant.json",
        ),
        (
            "open", result, "-i", provider.identity, "-o", tmp_path / "out", "--policy", policy,
            "--attestation", attestation,
            "--grant", f"{sealed}.grant.json", "--json",
        ),
        (
            "ack", spool, "--policy", policy, "--attestation", attestation, "--grant", f"{sealed}.grant.json",
            "--result", result,
        ),
    ]  # fmt: skip
    ran, refused = {}, []
    for step in steps:
        ran[step[0]] = trainer(*step)
        if unsigned in step or "watch" in step:
            refused.append((step[0], ran[step[0]].code))
        else:
            assert ran[step[0]].code == 0, (step, ran[step[0]].err)
    assert refused == [("seal", 0), ("upload", 2), ("upload", 0), ("watch", 5), ("watch", 0)]
    assert job.wait() == 0
    assert ran["validate"].out.startswith("40 rows: 40 messages\n")
    watched = [json.loads(line) for line in ran["watch"].out.splitlines()]
    assert watched[-1]["phase"] == "awaiting-pull"
    assert any("loss" in event for event in watched), "the provider reads its losses"
    assert ran["open"].json["checks"]["receipt-dataset"] == "affirmed"
    assert Path(f"{sealed}.grant.json").stat().st_mode & 0o777 == 0o600
    _stock_age_lists_the_same(result, provider.identity, tmp_path / "out")


def _stock_age_lists_the_same(sealed: Path, identity: Path, opened: Path) -> None:
    try:
        age = subprocess.run(["age", "-d", "-i", identity, sealed], capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("Debian's age is not here")
    listed = subprocess.run(
        ["tar", "t"], input=age.stdout, capture_output=True, check=True
    ).stdout.decode()
    assert set(listed.splitlines()) == {
        path.relative_to(opened).as_posix() for path in files_below(opened)
    }
