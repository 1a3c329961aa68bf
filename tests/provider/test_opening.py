"""Opening a sealed result: all that was agreed before is compared; if one thing differs, nothing is written."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.attestation.field_changes import changes
from tests.provider.honest_result import (
    FILES,
    IDENTITY,
    MANIFEST,
    RECEIPT_KEY,
    ROWS,
    Sealing,
    grant_record,
    opened,
)
from trainer.attestation.checks import CheckState
from trainer.attestation.evidence import StatementClaims
from trainer.attestation.result.record import Record
from trainer.encoding import canonical_json, sha256_hex
from trainer.error_document import FailureReport
from trainer.errors import ErrorCode, JobError, TrainerError, UsageError, VerificationError
from trainer.provider.grants import read_grant_record
from trainer.provider.opening import open_sealed_result
from trainer.provider.receipt_account import describe_privacy
from trainer.provider.result_check import OpenedResult
from trainer.provider.verification import verify_privacy_statement
from trainer.receipt.attested_envelope import AttestedEnvelope
from trainer.receipt.dsse import parse_envelope, public_key_der, sign_envelope
from trainer.receipt.model_signature import sign_model
from trainer.receipt.privacy_statement import (
    PRIVACY_STATEMENT,
    PrivacyPredicate,
    make_privacy_statement,
)
from trainer.receipt.public_provenance import make_public_provenance
from trainer.receipt.statement import ReceiptOutcome, parse_statement, recipient_fingerprint
from trainer.sealing.age import generate_identity
from trainer.simulator.agent import SimulatedVm
from trainer.simulator.appraisal_world import APP_COMPOSE, SEED


def test_an_honest_result_opens(sealing: Sealing, tmp_path: Path) -> None:
    result = opened(sealing, tmp_path)
    assert (result.failure, result.adapter) == (None, tmp_path / "out" / "adapter")
    assert (result.adapter / "adapter_config.json").read_bytes() == b"{}"
    assert all(check.acceptable for check in result.checks)


def test_a_link_that_leads_nowhere_is_an_output_that_exists(
    sealing: Sealing, tmp_path: Path
) -> None:
    (tmp_path / "out").symlink_to("elsewhere")
    with pytest.raises(UsageError) as caught:
        opened(sealing, tmp_path)
    assert caught.value.code is ErrorCode.OUTPUT_EXISTS
    assert (tmp_path / "out").is_symlink()


def private(sealing: Sealing, *, purpose: Any = "privacy", **changes: Any) -> Sealing:
    """A private result: the receipt says ε, and `privacy.json` says it of the weights alone."""
    world, digests = sealing.world, {name: sha256_hex(content) for name, content in FILES.items()}
    stated = {
        "jobSpecSha256": sealing.spec.sha256(), "run": "7c" * 16, "runs": 1, "epsilon": 3.0, "delta": 1e-5,
        "accountant": "prv",
    }  # fmt: skip
    predicate = PrivacyPredicate.model_validate({**stated, **changes})
    statement = make_privacy_statement(predicate, digests)
    claims = StatementClaims(
        version=1,
        purpose=purpose,
        job_spec_sha256=sealing.spec.sha256(),
        statement_sha256=sha256_hex(statement),
        receipt_key=public_key_der(RECEIPT_KEY.public_key()).hex(),
        issued_at=world.now + 60,
    )
    envelope = parse_envelope(sign_envelope(statement, RECEIPT_KEY))
    attested = AttestedEnvelope(
        envelope=envelope, evidence=world.change(receipt=claims).receipt_evidence()
    )
    receipt = {
        "metrics": {
            "rows": ROWS,
            "privacy": {"differential": {"epsilon": 2.987654321, "delta": 1e-5}},
        }
    }
    return replace(
        sealing, statement=receipt, files={**FILES, PRIVACY_STATEMENT: attested.canonical()}
    )


def test_a_private_result_has_a_statement_that_can_be_shown_by_itself(
    sealing: Sealing, tmp_path: Path
) -> None:
    result = opened(private(sealing), tmp_path)
    assert "privacy-statement" in {
        check.code for check in result.checks if check.state is CheckState.AFFIRMED
    }
    place = [check.code for check in result.checks].index("privacy-statement")
    assert [check.number for check in result.checks[: place + 1]] == list(range(1, place + 2))
    # Without the receipt, and without a key: what is handed on is the statement and the weights.
    document, weights = (
        (result.folder / PRIVACY_STATEMENT).read_bytes(),
        "adapter/adapter_model.safetensors",
    )
    files = {weights: sha256_hex(FILES[weights])}
    said = verify_privacy_statement(document, sealing.record(), files).predicate
    assert (said.epsilon, said.delta, said.runs) == (3.0, 1e-5, 1)
    with pytest.raises(VerificationError, match="other weights"):
        verify_privacy_statement(document, sealing.record(), {weights: "0" * 64})


def test_what_is_printed_of_privacy_is_the_sum_over_all_runs(
    sealing: Sealing, tmp_path: Path
) -> None:
    """The receipt has ε of the one run; who reads it alone takes the rows for better protected than they are."""
    result = opened(private(sealing, runs=2, epsilon=6.0, delta=2e-5), tmp_path)
    assert result.privacy is not None
    assert describe_privacy(result.privacy) == "ε = 6 at δ = 2e-05 for each row, over 2 runs"


@pytest.mark.parametrize("epsilon", [True, "3", None])
def test_a_receipt_with_something_else_than_numbers_bears_no_privacy_statement_out(
    epsilon: object, sealing: Sealing, tmp_path: Path
) -> None:
    receipt = {
        "metrics": {
            "rows": ROWS,
            "privacy": {"differential": {"epsilon": epsilon, "delta": "1e-5"}},
        }
    }
    with pytest.raises(VerificationError, match="privacy-statement"):
        opened(replace(private(sealing), statement=receipt), tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"epsilon": 2.9}, "privacy-statement"),
        ({"delta": 1e-6}, "privacy-statement"),
        ({"run": "0" * 32}, "privacy-statement"),
        ({"jobSpecSha256": "0" * 64}, "other job spec"),
        ({"purpose": "receipt"}, "statement-purpose"),
    ],
)
def test_a_privacy_statement_that_the_receipt_does_not_bear_out_is_refused(
    change: dict[str, Any], reason: str, sealing: Sealing, tmp_path: Path
) -> None:
    with pytest.raises(VerificationError, match=reason):
        opened(private(sealing, **change), tmp_path)


def test_a_private_result_without_its_statement_is_refused(
    sealing: Sealing, tmp_path: Path
) -> None:
    with pytest.raises(VerificationError, match=r"privacy\.json"):
        opened(replace(private(sealing), files=FILES), tmp_path)


def test_a_failure_report_opens_to_its_error(sealing: Sealing, tmp_path: Path) -> None:
    report = FailureReport.of(JobError(ErrorCode.INTERNAL, "it went wrong"))
    failed = failing(sealing, {"report/failure.json": report.canonical()})
    failure = opened(failed, tmp_path).failure
    assert failure is not None
    assert (failure.code, failure.message) == (ErrorCode.INTERNAL, "it went wrong")


def failing(sealing: Sealing, files: Mapping[str, bytes]) -> Sealing:
    return replace(
        sealing,
        statement={"outcome": ReceiptOutcome.FAILED, "error": ErrorCode.INTERNAL},
        files=files,
    )


def stating(**changes: object) -> Callable[[Sealing], Sealing]:
    return lambda sealing: replace(sealing, statement={**sealing.statement, **changes})


ATTACKS: dict[str, tuple[str, Callable[[Sealing], Sealing]]] = {
    "a failure without its report": (
        "receipt-outcome",
        lambda s: failing(s, {"logs/job.log": b"text"}),
    ),
    "a failure with a report that nobody can read": (
        "receipt-outcome",
        lambda s: failing(s, {"report/failure.json": b"{}"}),
    ),
    "a success without weights": (
        "receipt-outcome",
        lambda s: replace(s, files={"adapter/adapter_config.json": b"{}"}),
    ),
    "one recipient more than the grant has": (
        "receipt-recipients",
        lambda s: replace(s, also_sealed_to=(generate_identity(),)),
    ),
    "an end in the year 2099": ("receipt-times", stating(finished_at=4_070_908_800)),
    "an end that the quote does not know": (
        "receipt-times",
        lambda s: replace(s, quoted_at=s.world.now + 61),
    ),
    "a start before the evidence": ("receipt-times", stating(started_at=1)),
    "the dataset's files without the salt": (
        "receipt-dataset",
        stating(dataset_files={"train.jsonl": "3" * 64}),
    ),
    "another dataset's files": (
        "receipt-dataset",
        stating(dataset_files={"train.jsonl": "4" * 64}),
    ),
    "no files of a dataset": ("receipt-dataset", stating(dataset_files={})),
    "one more file of a dataset": (
        "receipt-dataset",
        stating(dataset_files={**MANIFEST.salted_digests(), "more.jsonl": "3" * 64}),
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_one_difference_is_refused_and_nothing_is_written(
    sealing: Sealing, tmp_path: Path, name: str
) -> None:
    code, change = ATTACKS[name]
    with pytest.raises(VerificationError) as refused:
        opened(change(sealing), tmp_path)
    assert refused.value.code is ErrorCode.RECEIPT_MISMATCH
    assert f"the check {code} " in refused.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.tar.age", "tree"]


def test_a_model_signature_and_a_public_provenance_that_say_something_else(
    sealing: Sealing, tmp_path: Path
) -> None:
    """The receipt lists both files with their digests, so a job that was taken over could sign for anything."""
    other = {name: sha256_hex(b"other") for name in FILES}
    receipt = parse_statement(honest_statement(sealing, tmp_path / "honest"))
    public = json.loads(make_public_provenance(receipt))
    more = public | {"predicate": public["predicate"] | {"loss": 1}}
    wrong = {
        "no signature": replace(sealing, signature=b"{}"),
        "of other files": replace(sealing, signature=sign_model(other, RECEIPT_KEY)),
        "with a loss": replace(sealing, public=canonical_json(more)),
        "another purpose": replace(sealing, public_purpose="deletion"),
    }
    for name, changed in wrong.items():
        (tmp_path / name).mkdir()
        with pytest.raises(VerificationError):
            opened(changed, tmp_path / name)
        assert not (tmp_path / name / "out").exists(), name


def test_the_public_provenance_names_nothing_private(sealing: Sealing, tmp_path: Path) -> None:
    result = opened(sealing, tmp_path)
    document = json.loads((result.folder / "provenance.json").read_bytes())
    text = base64.b64decode(document["envelope"]["payload"]).decode()
    terms = grant_record(sealing.spec).terms()
    fingerprints = [recipient_fingerprint(recipient) for recipient in terms.recipients]
    private = [
        "train.jsonl",
        terms.manifest_sha256,
        *terms.dataset_files.values(),
        *fingerprints,
        "rows",
        "startedOn",
    ]
    assert [word for word in private if word in text] == []
    assert "adapter/adapter_model.safetensors" in text


def honest_statement(sealing: Sealing, folder: Path) -> bytes:
    folder.mkdir()
    envelope = json.loads((opened(sealing, folder).folder / "receipt.json").read_bytes())
    return base64.b64decode(envelope["payload"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter/extra.py", b"import os"),
        ("adapter/adapter_model.bin", b"\x80\x04."),
        ("adapter/adapter_model.safetensors", b"\x80\x04."),
        ("adapter/adapter_config.json", b"no JSON"),
        ("report/report.html", b"<script>1</script>"),
        ("logs/job.log", b"\x1b]0;title\x07"),
        ("merged/tokenizer.model", b"pinned by nobody"),
    ],
)
def test_a_file_that_no_result_has_is_not_written_though_it_was_signed_for(
    sealing: Sealing, tmp_path: Path, name: str, content: bytes
) -> None:
    with pytest.raises(VerificationError, match="must not have") as refused:
        opened(replace(sealing, files={**FILES, name: content}), tmp_path)
    assert refused.value.code is ErrorCode.RECEIPT_MISMATCH
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.tar.age", "tree"]


UNUSED_WHEN_OPENING = (
    r"(rows|header): .*|grant\.(secret|expires_at): .*|grant\.allow.*|grant\.require.*|"
    r"(grant\.joint|pool): missing"
)
"""Changes of a grant record that opening has no use for: acknowledging, sealing, re-grants and the run need them.

What is null may be left out.
"""


def test_no_field_of_the_grant_record_can_be_changed(sealing: Sealing, tmp_path: Path) -> None:
    source, record = sealing.seal(tmp_path), sealing.record()
    made = changes(json.loads(grant_record(sealing.spec).model_dump_json()))
    judged = [change for change in made if not re.fullmatch(UNUSED_WHEN_OPENING, change[0])]
    assert len(judged) >= 20
    wrong = []
    for name, changed in judged:
        (tmp_path / "grant.json").write_text(json.dumps(changed))
        with suppress(TrainerError):
            grant = read_grant_record(tmp_path / "grant.json")
            open_sealed_result(source, [IDENTITY], tmp_path / "out", record=record, grant=grant)
            shutil.rmtree(tmp_path / "out")
            wrong.append(name)
    assert wrong == []


def test_what_is_no_sealed_file_is_refused(sealing: Sealing, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no age file")
    with pytest.raises(TrainerError) as refused:
        open_sealed_result(
            tmp_path / "file", [IDENTITY], tmp_path / "out", record=sealing.record(), grant=None
        )
    assert refused.value.code is ErrorCode.HEADER_INVALID
    assert not (tmp_path / "out").exists()


ANOTHER_KEY = ec.derive_private_key(9, ec.SECP256R1())


def test_the_receipt_of_a_later_start_opens_by_the_key_that_its_quote_names(
    sealing: Sealing, tmp_path: Path
) -> None:
    assert opened(replace(sealing, key=ANOTHER_KEY), tmp_path).failure is None


def test_a_receipt_by_a_key_that_no_quote_names_is_refused(
    sealing: Sealing, tmp_path: Path
) -> None:
    """Not even by the key that the claims before sealing named."""
    with pytest.raises(VerificationError) as refused:
        opened(replace(sealing, quoted_key=ANOTHER_KEY), tmp_path)
    assert refused.value.code is ErrorCode.RECEIPT_INVALID
    assert not (tmp_path / "out").exists()


def test_the_result_of_a_later_boot_opens_by_the_appraisal_of_that_boot(
    sealing: Sealing, tmp_path: Path
) -> None:
    """Each boot measures its own GPU evidence, so that RTMR3 differs; the provider verified the job again."""
    vm = sealing.world.vm
    booted = SimulatedVm(APP_COMPOSE, SEED, options=vm.options)
    booted.emit_event("gpus-of-this-boot", b"2")
    later = replace(sealing, world=sealing.world.change(vm=booted))
    source, grant = later.seal(tmp_path), grant_record(sealing.spec)

    def opened_with(restarted: Record | None, name: str) -> OpenedResult:
        return open_sealed_result(
            source,
            [IDENTITY],
            tmp_path / name,
            record=sealing.record(),
            grant=grant,
            restarted=restarted,
        )

    assert opened_with(later.record(), "out").failure is None
    with pytest.raises(VerificationError, match="same-vm"):
        opened_with(None, "unverified")
