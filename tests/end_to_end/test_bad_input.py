"""What a provider, an operator or a stranger can do wrong: its own exit code, message, hint; nothing is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.conftest import grant_beside
from trainer import provider as steps
from trainer.attestation.result.record import load_record
from trainer.cli.options import local_secret
from trainer.errors import SealingError, TrainerError
from trainer.provider.grants import GrantRecord
from trainer.sealing.age import decrypt_file, encrypt_file, generate_identity, parse_recipient
from trainer.sealing.seal import seal as seal_unchecked

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Job, Provider, Ran, StartJob, Trainer, WriteSpec


def assert_error(ran: Ran, exit_code: int, code: str, *words: str) -> None:
    assert ran.code == exit_code, ran.err
    assert f"error[{code}]" in ran.err
    for word in words:
        assert word in ran.err
    assert "Traceback" not in ran.err


# the operator


def test_unknown_key_in_the_job_spec(
    started_trainer: Trainer, write_spec: WriteSpec, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path / "job.yaml", train={"micro_batch_size": 3})
    ran = started_trainer("run", spec)
    assert_error(
        ran,
        2,
        "spec-unknown-key",
        "train.micro_batch_size",
        "hint: did you mean train.per_device_train_batch_size?",
    )


def test_no_guest_agent(start_job: StartJob, write_spec: WriteSpec, tmp_path: Path) -> None:
    job: Job = start_job(write_spec(tmp_path / "job.yaml"), guest_agent=tmp_path / "nobody")
    assert job.wait() == 3
    assert job.events[-1]["code"] == "guest-agent-unavailable"
    assert list(job.workspace.iterdir()) == []


def test_a_model_file_with_another_digest(
    start_job: StartJob, write_spec: WriteSpec, tmp_path: Path, tiny_model: Path
) -> None:
    changed = tmp_path / "model"
    shutil.copytree(tiny_model, changed)
    with (changed / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        weights.write(b"\x55")
    job: Job = start_job(
        write_spec(tmp_path / "job.yaml", model={"model_name_or_path": str(changed)})
    )
    assert job.wait() == 6
    assert job.events[-1] == job.events[-1] | {"event": "failed", "code": "model-digest-mismatch"}
    assert list(job.workspace.iterdir()) == []


def test_a_workspace_on_a_disk(
    started_trainer: Trainer, write_spec: WriteSpec, tmp_path: Path
) -> None:
    ran = started_trainer("run", write_spec(tmp_path / "job.yaml"), "--workspace", "/usr")
    assert_error(ran, 6, "workspace-unsafe", "tmpfs", "hint:")


# verification


def test_evidence_from_a_file_needs_the_nonce_that_was_asked_for(
    start_job: StartJob, write_spec: WriteSpec, provider: Provider, trainer: Trainer, tmp_path: Path
) -> None:
    spec, spool = write_spec(tmp_path / "job.yaml"), tmp_path / "spool"
    job: Job = start_job(spec, "--spool", spool)
    job.wait_event(event="phase", phase="awaiting-dataset")
    policy, evidence, nonce = provider.policy(spec), tmp_path / "evidence.json", "ab" * 32
    evidence.write_bytes(steps.connect_to_job(str(spool)).attestation(nonce))
    assert_error(trainer("verify", evidence, "--policy", policy), 2, "usage", "--nonce")
    good = trainer("verify", evidence, "--policy", policy, "--nonce", nonce, "--json")
    assert good.code == 0, good.err
    wrong = trainer("verify", evidence, "--policy", policy, "--nonce", "cd" * 32, "--json")
    assert wrong.code == 4
    assert json.loads(wrong.out.splitlines()[0])["checks"]["nonce"] == "contraindicated"
    tampered = json.loads(evidence.read_bytes())
    tampered["quote"] = (
        tampered["quote"][:400]
        + ("0" if tampered["quote"][400] != "0" else "1")
        + tampered["quote"][401:]
    )
    evidence.write_text(json.dumps(tampered))
    assert trainer("verify", evidence, "--policy", policy, "--nonce", nonce).code == 4


# the dataset


def test_bad_rows_inside_the_job_are_reported_under_seal(
    start_job: StartJob, write_spec: WriteSpec, provider: Provider, trainer: Trainer, tmp_path: Path
) -> None:
    """The provider's own check is left out here, as an older tool might."""
    asked = {"role": "user", "content": "canary-in-a-bad-row"}
    row = json.dumps({"messages": [asked, {"role": 7, "content": ""}]})
    spec = write_spec(tmp_path / "job.yaml", exchange={"dataset_tries": 1})
    job: Job = start_job(spec)
    recipient, policy, record = (
        provider.keygen(),
        provider.policy(spec),
        tmp_path / "attestation.json",
    )
    assert trainer("verify", job.url, "--policy", policy, "-o", record).code == 0
    data, sealed, result = (
        tmp_path / "train.jsonl",
        tmp_path / "dataset.age",
        tmp_path / "result.tar.age",
    )
    data.write_text(row + "\n")
    appraised = steps.read_own_record(
        record, steps.read_policy(policy), secret=local_secret()
    ).result
    now = appraised.appraised_at
    grant = steps.make_grant(appraised, [recipient], now=now)
    manifest = seal_unchecked({"train.jsonl": data}, appraised, grant, sealed, now=now)
    kept = GrantRecord(grant=grant, manifest=manifest, rows=1, header="-")
    grant_beside(record).write_text(kept.model_dump_json())
    assert (
        trainer(
            "upload", sealed, "--job-url", job.url, "--policy", policy, "--attestation", record
        ).code
        == 0
    )
    assert trainer("watch", job.url, "--policy", policy, "--attestation", record).code == 0
    assert provider.pull(job.url, record, result, record).code == 0
    assert job.wait() == 6
    ran = provider.open(result, tmp_path / "out", record)  # fmt: skip
    assert_error(ran, 6, "dataset-row-invalid", "messages[1].role")
    assert job.events[-1]["code"] == "dataset-row-invalid"
    public = job.out.read_bytes() + job.err.read_bytes() + ran.err.encode() + ran.out.encode()
    public += (tmp_path / "out" / "report" / "failure.json").read_bytes()
    assert b"canary" not in public
    assert not (tmp_path / "out" / "adapter").exists()
    assert list(job.workspace.iterdir()) == []


def test_submit_tells_why_a_dataset_was_refused_and_goes_on_with_a_mended_one(
    start_job: StartJob,
    write_spec: WriteSpec,
    provider: Provider,
    trainer: Trainer,
    rows: str,
    tmp_path: Path,
) -> None:
    """A row that only the job can refuse: it is too long once it is tokenised."""
    spec = write_spec(tmp_path / "job.yaml")
    job: Job = start_job(spec)
    data, result = tmp_path / "train.jsonl", tmp_path / "result"
    provider.keygen()
    submit = (
        "submit", data, "--job-url", job.url, "--policy", provider.policy(spec), "-i", provider.identity,
        "-o", result, "--json",
    )  # fmt: skip
    data.write_text(rows + json.dumps({"text": "canary-in-a-long-row " * 500}) + "\n")
    ran = trainer(*submit)
    assert_error(ran, 6, "dataset-overlong", "row 40", "the job waits for another dataset")
    assert ran.json["error"]["code"] == "dataset-overlong"
    assert not result.exists(), "it stays free for a result"
    refused = tmp_path / "result.failure-1"
    report = json.loads((refused / "report" / "failure.json").read_bytes())
    assert (report["file"], report["row"]) == ("train.jsonl", 40)
    assert (refused / "receipt.json").exists()
    assert not (refused / "adapter").exists()
    assert "canary" not in ran.err + ran.out + json.dumps(report)

    again = trainer(*submit)
    assert_error(again, 6, "dataset-overlong")
    assert [event["event"] for event in job.events].count("dataset-refused") == 1, (
        "the same data is no try"
    )

    data.write_text(rows)
    mended = trainer(*submit)
    assert mended.code == 0, mended.err
    assert (result / "adapter").exists()
    assert job.wait() == 0
    log = (result / "logs" / "job.log").read_text()
    assert "row 40" not in log, "of the refused dataset nothing is sealed with the next result"


# the sealed dataset


def test_damaged_and_misaddressed_uploads_are_refused_and_the_right_one_still_works(
    start_job: StartJob,
    write_spec: WriteSpec,
    provider: Provider,
    trainer: Trainer,
    data: Path,
    tmp_path: Path,
) -> None:
    spec = write_spec(tmp_path / "job.yaml")
    job: Job = start_job(spec)
    policy, record = provider.policy(spec), tmp_path / "attestation.json"
    assert trainer("verify", job.url, "--policy", policy, "-o", record).code == 0
    good = tmp_path / "good.age"
    assert provider.seal(data, record, good).code == 0
    whole = good.read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    stranger = tmp_path / "stranger.age"
    encrypt_file(data, stranger, [generate_identity().recipient()])
    not_a_bundle = tmp_path / "not-a-bundle.age"
    encrypt_file(
        data, not_a_bundle, [parse_recipient(load_record(record.read_bytes()).result.recipient)]
    )
    attacks = {
        "truncated": (whole[:-50], "sealed-payload-invalid"),
        "flipped": (bytes(flipped), "sealed-payload-invalid"),
        "header": (whole.replace(b"--- ", b"--- A", 1), "sealed-header-invalid"),
        "garbage": (b"\0" * 5000, "sealed-header-invalid"),
        "stranger": (stranger.read_bytes(), "no-identity-match"),
        "not a bundle": (not_a_bundle.read_bytes(), "bundle-invalid"),
    }
    for name, (content, code) in attacks.items():
        path = tmp_path / f"{name}.age"
        path.write_bytes(content)
        assert (
            trainer(
                "upload", path, "--job-url", job.url, "--policy", policy, "--attestation", record
            ).code
            == 0
        )
        ran = trainer("watch", job.url, "--policy", policy, "--attestation", record)
        assert_error(ran, 5, code, "hint:")
    assert (
        trainer(
            "upload", good, "--job-url", job.url, "--policy", policy, "--attestation", record
        ).code
        == 0
    )
    assert trainer("watch", job.url, "--policy", policy, "--attestation", record).code == 0


def test_a_job_spec_changed_after_sealing_cannot_open_the_data(
    start_job: StartJob,
    write_spec: WriteSpec,
    kms_provider: Provider,
    trainer: Trainer,
    data: Path,
    tmp_path: Path,
) -> None:
    """Attack 1: same VM, same app key, another job.yaml: the derived key is another."""
    spec, agent = write_spec(tmp_path / "job.yaml"), kms_provider.agent.socket
    job: Job = start_job(spec, guest_agent=agent)
    record = tmp_path / "attestation.json"
    policy = kms_provider.policy(spec, "--recipient", "derived")
    assert trainer("verify", job.url, "--policy", policy, "-o", record).code == 0
    sealed = tmp_path / "dataset.age"
    assert kms_provider.seal(data, record, sealed).code == 0
    job.process.terminate()
    job.wait()

    changed = write_spec(tmp_path / "changed.yaml", train={"max_steps": 3})
    other: Job = start_job(changed, guest_agent=agent)
    other_record = tmp_path / "other.json"
    assert (
        trainer("verify", other.url, "--policy", policy, "-o", tmp_path / "refused.json").code == 4
    )
    changed_policy = kms_provider.policy(
        changed, "--recipient", "derived", name="changed-policy.yaml"
    )
    assert trainer("verify", other.url, "--policy", changed_policy, "-o", other_record).code == 0
    assert (
        trainer(
            "upload",
            sealed,
            "--job-url",
            other.url,
            "--policy",
            changed_policy,
            "--attestation",
            other_record,
        ).code
        == 0
    )
    assert_error(
        trainer("watch", other.url, "--policy", changed_policy, "--attestation", other_record),
        5,
        "no-identity-match",
    )


def test_data_sealed_to_an_instance_cannot_be_opened_by_a_later_one(
    start_job: StartJob,
    write_spec: WriteSpec,
    provider: Provider,
    trainer: Trainer,
    data: Path,
    tmp_path: Path,
) -> None:
    """Attack 4: a later VM of the same app gets the same derived keys; the instance key died with the first."""
    spec = write_spec(tmp_path / "job.yaml")
    job: Job = start_job(spec)
    policy, record = provider.policy(spec), tmp_path / "attestation.json"
    assert trainer("verify", job.url, "--policy", policy, "-o", record).code == 0
    sealed = tmp_path / "dataset.age"
    assert provider.seal(data, record, sealed).code == 0
    job.process.terminate()
    job.wait()

    later: Job = start_job(spec)
    impostor = trainer(
        "upload", sealed, "--job-url", later.url, "--policy", policy, "--attestation", record
    )
    assert_error(impostor, 4, "tls-key-mismatch")
    later_record = tmp_path / "later.json"
    assert trainer("verify", later.url, "--policy", policy, "-o", later_record).code == 0
    assert (
        trainer(
            "upload",
            sealed,
            "--job-url",
            later.url,
            "--policy",
            policy,
            "--attestation",
            later_record,
        ).code
        == 0
    )
    assert_error(
        trainer("watch", later.url, "--policy", policy, "--attestation", later_record),
        5,
        "no-identity-match",
    )


def test_too_large_an_upload(
    start_job: StartJob, write_spec: WriteSpec, provider: Provider, trainer: Trainer, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path / "job.yaml", exchange={"max_upload_bytes": 1 << 14})
    job: Job = start_job(spec)
    record, big = tmp_path / "attestation.json", tmp_path / "big.age"
    policy = provider.policy(spec)
    assert trainer("verify", job.url, "--policy", policy, "-o", record).code == 0
    big.write_bytes(bytes(1 << 15))
    ran = trainer("upload", big, "--job-url", job.url, "--policy", policy, "--attestation", record)
    assert_error(ran, 6, "dataset-too-large")
    assert [
        path for path in job.ciphertext.rglob("*") if path.is_file() and path.stat().st_size
    ] == []


def test_identities_and_outputs_are_never_overwritten(provider: Provider, trainer: Trainer) -> None:
    provider.keygen()
    before = provider.identity.read_bytes()
    assert_error(trainer("keygen", "-o", provider.identity), 2, "output-exists", "hint:")
    assert provider.identity.read_bytes() == before
    assert provider.identity.stat().st_mode & 0o777 == 0o600


def test_errors_are_of_the_documented_kinds(tmp_path: Path) -> None:
    with pytest.raises(TrainerError) as caught:
        decrypt_file(tmp_path / "nothing", tmp_path / "out", [generate_identity()])
    assert not isinstance(caught.value, SealingError)
    assert caught.value.exit_code == 2
