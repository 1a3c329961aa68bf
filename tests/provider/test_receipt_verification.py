"""An opened result is checked again by the record beside it: offline, without the key, and nothing is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.provider.honest_result import BACKUP, Sealing, opened
from trainer.cli.app import run_command_line
from trainer.encoding import canonical_json
from trainer.errors import ErrorCode, TrainerError, UsageError, VerificationError
from trainer.provider.receipt_account import give_account
from trainer.provider.receipt_record import RECORD_NAME, record_directory
from trainer.provider.receipt_verification import (
    VerifiedReceipt,
    read_receipt_record,
    verify_result,
)

REFUSALS = (ErrorCode.RECEIPT_MISMATCH, ErrorCode.RECEIPT_INVALID, ErrorCode.EVIDENCE_INVALID)


@pytest.fixture
def sealing(sealing: Sealing) -> Sealing:
    """Records are judged under NVIDIA's own root, so the test's GPU stays out of them."""
    return replace(sealing, world=sealing.world.without_reports())


@pytest.fixture
def result(sealing: Sealing, tmp_path: Path) -> Path:
    opened_result = opened(sealing, tmp_path)
    opened_result.write_record()
    return opened_result.folder


def verify(result: Path, **options: Any) -> VerifiedReceipt:
    chosen = {"policy": None, "at": None} | options
    return verify_result(result, read_receipt_record(result, None), **chosen)


def edit_record(result: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = record_directory(result) / RECORD_NAME
    document = json.loads(path.read_bytes())
    edit(document)
    path.write_bytes(canonical_json(document))


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in files
    }


def test_an_opened_result_is_checked_again_and_left_as_it_was(result: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    verified = verify(result)
    assert [check.code for check in verified.opened.checks if not check.acceptable] == []
    assert tree(tmp_path) == before
    questions = " ".join(verified.open_questions)
    for words in ("own nonce", "--at", "--policy", "provider's key", "no statement"):
        assert words in questions


def test_the_record_has_no_secret(result: Path) -> None:
    path = record_directory(result) / RECORD_NAME
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    text = path.read_text()
    assert "cd" * 32 not in text  # the grant's secret
    assert "5a" * 32 not in text  # the salt of the manifest
    assert str(BACKUP) not in text


def test_a_policy_and_a_time_of_ones_own(sealing: Sealing, result: Path) -> None:
    policy, now = sealing.world.policy, sealing.world.now
    assert not any(
        "--policy" in question for question in verify(result, policy=policy).open_questions
    )
    other = sealing.world.demanding("app", job_spec_sha256=("0" * 64,)).policy
    with pytest.raises(VerificationError) as caught:
        verify(result, policy=other)
    assert (caught.value.code, caught.value.found) == (
        ErrorCode.VERIFICATION_FAILED,
        "job-spec-digest",
    )
    assert verify(result, at=now + 5).attestation.result.appraised_at == now + 5
    with pytest.raises(VerificationError):
        verify(result, at=now + 10 * 365 * 86400)


def replace_file(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda result: (result / name).write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        replace_file("adapter/adapter_config.json", b'{"r": 8}'),
        replace_file("adapter/more.json", b"{}"),
        replace_file("receipt.json", b"{}"),
        replace_file("evidence.json", b"{}"),
        lambda result: (result / "adapter/adapter_config.json").unlink(),
        lambda result: (result / "adapter/more.json").symlink_to("adapter_config.json"),
        lambda result: (result / "more").symlink_to("adapter"),
        lambda result: os.mkfifo(result / "pipe"),
    ],
)
def test_a_result_that_was_changed_is_refused(
    result: Path, change: Callable[[Path], object]
) -> None:
    change(result)
    with pytest.raises(VerificationError) as caught:
        verify(result)
    assert caught.value.code in REFUSALS


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record["terms"].update(manifest_sha256="0" * 64),
        lambda record: record["terms"]["dataset_files"].update({"train.jsonl": "0" * 64}),
        lambda record: record["terms"].update(recipients=[str(BACKUP.recipient())]),
        lambda record: record["terms"].update(rows=2),
        lambda record: record["sealed"].update(stanzas=3),
        lambda record: record["attestation"]["evidence"]["claims"].update(nonce="0" * 64),
        lambda record: record["attestation"]["result"].update(status="fail"),
        lambda record: record["attestation"].update(collateral="{}"),
        lambda record: record["receipt"]["envelope"].update(payload="e30="),
        lambda record: record["receipt"]["evidence"]["claims"].update(issued_at=1),
        lambda record: record.update(deletion=record["receipt"]),
        lambda record: record.update(more=1),
        lambda record: record.update(version=2),
    ],
)
def test_a_record_of_something_else_is_refused(
    result: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    edit_record(result, edit)
    with pytest.raises(VerificationError):
        verify(result)


def test_a_result_without_a_record_says_where_one_was_expected(
    result: Path, tmp_path: Path
) -> None:
    record_directory(result).rename(tmp_path / "kept")
    with pytest.raises(UsageError, match=r"out\.record") as caught:
        verify(result)
    assert "--record" in str(caught.value.hint)
    assert verify_result(
        result, read_receipt_record(result, tmp_path / "kept"), policy=None, at=None
    )
    with pytest.raises(TrainerError, match="a result"):
        verify_result(
            tmp_path / "none", read_receipt_record(result, tmp_path / "kept"), policy=None, at=None
        )


def test_what_was_opened_without_the_grant_leaves_more_open(result: Path) -> None:
    edit_record(result, lambda record: record.update(terms=None))
    verified = verify(result)
    assert "who else can read it" in verified.open_questions
    assert "nobody else" not in "\n".join(line.text for line in give_account(verified, now=0))


def test_the_account_has_facts_and_a_timeline_in_order(result: Path) -> None:
    lines = [line.text for line in give_account(verify(result), now=0)]
    assert lines[0] == "A LoRA adapter for ./model"
    text = "\n".join(lines)
    for words in ("2 recipients", "train.jsonl", "the run began", "the run ended", "Not judged"):
        assert words in text
    moments = [line[2:21] for line in lines if " UTC (in " in line]
    assert moments == sorted(moments)
    assert len(moments) == 5


def test_the_commands_say_what_a_result_is(
    result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["receipt", "verify", str(result), "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["outcome"] == "succeeded"
    assert set(document["checks"].values()) == {"affirmed", "not-demanded"}
    assert run_command_line(["receipt", "show", str(result)]) == 0
    assert "A LoRA adapter for ./model" in capsys.readouterr().out
    (result / "adapter/adapter_config.json").write_bytes(b"[]")
    assert run_command_line(["receipt", "verify", str(result)]) == 4
    before = tree(result)
    assert run_command_line(["verify", str(result), "--policy", str(result)]) == 2
    assert tree(result) == before


def test_stock_tools_read_what_is_exported(result: Path, tmp_path: Path) -> None:
    verifying = pytest.importorskip("model_signing.verifying")
    dsse = pytest.importorskip("securesystemslib.dsse")
    signer = pytest.importorskip("securesystemslib.signer")
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    output = tmp_path / "public"
    assert run_command_line(["receipt", "export", str(result), "-o", str(output)]) == 2
    assert run_command_line(["receipt", "export", str(result), "--public", "-o", str(output)]) == 0
    pem = output / "receipt-key.pem"
    verifying.Config().use_elliptic_key_verifier(public_key=pem).verify(
        result / "adapter", output / "model.sig"
    )
    envelope = dsse.Envelope.from_dict(
        json.loads((output / "provenance.intoto.jsonl").read_bytes())
    )
    key = signer.SSlibKey.from_crypto(
        load_pem_public_key(pem.read_bytes()), keyid=next(iter(envelope.signatures))
    )
    assert list(envelope.verify([key], threshold=1)) == [key.keyid]
    assert run_command_line(["receipt", "export", str(result), "--public", "-o", str(output)]) == 2
