"""What is wrong with a sealed result: a key that does not fit, bytes that were touched, other recipients."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.conftest import Agent, Provider, grant_beside, starting_jobs
from tests.end_to_end.test_bad_input import assert_error
from trainer import provider as steps
from trainer.attestation.result.record import load_record
from trainer.errors import ErrorCode, VerificationError
from trainer.provider.opening import open_sealed_result
from trainer.sealing.age import generate_identity
from trainer.sealing.archive import ArchiveLimits
from trainer.sealing.bundle import Manifest, ManifestFile
from trainer.sealing.sealed_result import open_result, seal_result

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Job, Trainer, WriteSpec
    from tests.fork_server import ForkServer

UNCHECKED = "--dataset-and-recipients-unchecked"


@dataclass(frozen=True)
class SealedResult:
    """What a provider has when a job is done; all tests look at the same one, and change copies only."""

    provider: Provider
    result: Path
    record: Path
    grant: Path


@pytest.fixture(scope="module")
def finished(
    write_spec: WriteSpec,
    trainer: Trainer,
    agent: Agent,
    stack_server: ForkServer,
    data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> SealedResult:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "provider").mkdir()
    provider = Provider(folder / "provider", trainer, agent)
    spec = write_spec(folder / "job.yaml", train={"max_steps": 1})
    result = folder / "result.tar.age"
    with starting_jobs(folder, agent, stack_server) as start_job:
        job: Job = start_job(spec)
        record = provider.deliver(job, data, folder)
        judged = ("--policy", provider.policy_file, "--attestation", record)
        watched = trainer("watch", job.url, *judged)
        assert watched.code == 0, watched.err
        pulled = provider.pull(job.url, record, result, record)
        assert pulled.code == 0, pulled.err
        assert job.wait() == 0
    return SealedResult(provider, result, record, grant_beside(record))


def test_what_is_wrong_with_a_result_is_told_and_nothing_is_written(
    finished: SealedResult, trainer: Trainer, tmp_path: Path
) -> None:
    provider, result, record, grant = (
        finished.provider,
        finished.result,
        finished.record,
        finished.grant,
    )
    provider.keygen(name="other.key")
    out = tmp_path / "out"
    judging = ("-o", out, "--policy", provider.policy_file, "--attestation", record)
    opening = (*judging, "--grant", grant)
    wrong_key = trainer("open", result, "-i", provider.folder / "other.key", *opening)
    assert_error(wrong_key, 5, "no-identity-match")
    truncated = tmp_path / "truncated.age"
    truncated.write_bytes(result.read_bytes()[:-10])
    assert_error(
        trainer("open", truncated, "-i", provider.identity, *opening), 5, "sealed-payload-invalid"
    )
    assert not out.exists()
    assert not list(tmp_path.glob(".out-*"))
    without = ("open", result, "-i", provider.identity, *judging)
    assert_error(trainer(*without, "--json"), 2, "usage", "--grant", "hint:")
    assert_error(trainer("open", result, "-i", provider.identity, *opening, UNCHECKED), 2, "usage")
    assert not out.exists()
    loud = trainer(*without, UNCHECKED, "--json")
    assert loud.code == 0, loud.err
    assert "which dataset it was trained on" in loud.json["not_checked"]
    assert "NOT CHECKED" in loud.err
    for left in (out, out.with_name("out.record")):
        shutil.rmtree(left)
    opened = trainer("open", result, "-i", provider.identity, *opening, "--json")
    assert opened.code == 0, opened.err
    assert (opened.json["not_checked"], opened.json["checks"]["receipt-rows"]) == ([], "affirmed")
    assert_error(trainer("open", result, "-i", provider.identity, *opening), 2, "output-exists")


def test_results_that_were_touched_are_refused(finished: SealedResult, tmp_path: Path) -> None:
    """Whoever knows the provider's recipient can seal to it; the receipt tells what came from the job."""
    result, grant = finished.result, steps.read_grant_record(finished.grant)
    identities, record = (
        steps.read_identity_file(finished.provider.identity).identities,
        load_record(finished.record.read_bytes()),
    )

    def change_weights(tree: Path) -> None:
        (tree / "adapter" / "adapter_model.safetensors").write_bytes(b"other weights")

    def add_file(tree: Path) -> None:
        (tree / "adapter" / "extra.py").write_text("import os")

    def drop_file(tree: Path) -> None:
        (tree / "report" / "metrics.jsonl").unlink()

    def drop_receipt(tree: Path) -> None:
        (tree / "receipt.json").unlink()

    def drop_evidence(tree: Path) -> None:
        (tree / "evidence.json").unlink()

    def sign_anew(tree: Path) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec

        from trainer.receipt.dsse import sign_envelope, verify_envelope

        key = bytes.fromhex(record.result.claims.receipt_key)
        payload = verify_envelope((tree / "receipt.json").read_bytes(), key)
        (tree / "receipt.json").write_bytes(
            sign_envelope(payload, ec.generate_private_key(ec.SECP256R1()))
        )

    def old_evidence(tree: Path) -> None:
        (tree / "evidence.json").write_bytes(record.evidence.canonical())

    def bend_quote(tree: Path) -> None:
        evidence = json.loads((tree / "evidence.json").read_bytes())
        quote = bytearray.fromhex(evidence["quote"])
        quote[600] ^= 1
        (tree / "evidence.json").write_text(json.dumps(evidence | {"quote": quote.hex()}))

    attacks = (
        change_weights,
        add_file,
        drop_file,
        drop_receipt,
        drop_evidence,
        sign_anew,
        old_evidence,
        bend_quote,
    )
    for attack in attacks:
        tree, bent, out = (
            tmp_path / attack.__name__,
            tmp_path / f"{attack.__name__}.age",
            tmp_path / "out",
        )
        tree.mkdir()
        open_result(result, identities, tree, limits=ArchiveLimits())
        attack(tree)
        seal_result(tree, bent, [identity.recipient() for identity in identities])
        with pytest.raises(VerificationError):
            open_sealed_result(bent, identities, out, record=record, grant=grant)
        assert not out.exists(), attack.__name__
        assert not list(tmp_path.glob(".out-*"))


def test_a_result_for_others_than_the_grant_named_is_refused(
    finished: SealedResult, tmp_path: Path
) -> None:
    """Attack 2: the statement says who can read the result; an added recipient shows."""
    result, grant = finished.result, steps.read_grant_record(finished.grant)
    identities, record = (
        steps.read_identity_file(finished.provider.identity).identities,
        load_record(finished.record.read_bytes()),
    )
    others = (*grant.grant.recipients, str(generate_identity().recipient()))
    wider = grant.model_copy(
        update={"grant": grant.grant.model_copy(update={"recipients": others})}
    )
    with pytest.raises(VerificationError, match="receipt-recipients"):
        open_sealed_result(result, identities, tmp_path / "out", record=record, grant=wider)
    other = Manifest(
        version=1, salt="5a" * 32, files={"train.jsonl": ManifestFile(sha256="0" * 64, size=1)}
    )
    with pytest.raises(VerificationError, match="receipt-dataset"):
        open_sealed_result(
            result, identities, tmp_path / "out", record=record,
            grant=grant.model_copy(update={"manifest": other}),
        )  # fmt: skip
    with pytest.raises(VerificationError, match="receipt-rows"):
        open_sealed_result(
            result,
            identities,
            tmp_path / "out",
            record=record,
            grant=grant.model_copy(update={"rows": 41}),
        )
    other_job = grant.grant.model_copy(update={"job_spec_sha256": "0" * 64})
    with pytest.raises(VerificationError) as caught:
        open_sealed_result(
            result,
            identities,
            tmp_path / "out",
            record=record,
            grant=grant.model_copy(update={"grant": other_job}),
        )
    assert caught.value.code is ErrorCode.GRANT_MISMATCH
    assert not (tmp_path / "out").exists()
