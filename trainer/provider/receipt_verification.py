"""Checks an opened result again, offline and without the provider's key, by the record beside it.

    evidence → policy → receipt → files        as when it was opened
    deletion statement                         about the sealed result of the record

Nothing is fetched and nothing is written. What only the provider could know at the time is listed, not assumed.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.attestation.policy import Policy
from trainer.attestation.result.record import Record, reappraise
from trainer.durations import utc
from trainer.encoding import printable
from trainer.errors import ErrorCode, UsageError, VerificationError
from trainer.provider.local_files import read_small_file
from trainer.provider.opening import UNCHECKED_WITHOUT_GRANT
from trainer.provider.receipt_record import (
    MAX_RECEIPT_RECORD_BYTES,
    ReceiptRecord,
    find_receipt_record,
    parse_receipt_record,
    record_directory,
)
from trainer.provider.result_check import OpenedResult, check_result
from trainer.provider.verification import verify_deletion_statement
from trainer.receipt.deletion import DeletionStatement
from trainer.receipt.dsse import parse_envelope
from trainer.receipt.statement import dataset_sha256

_ALWAYS_OPEN: Final = (
    "that the evidence answered the provider's own nonce: only who drew it knows",
    "that the sealed file of the record's digest had these contents: it takes the provider's key to open it",
    "which rows the salted digests of the data files stand for: it takes the data and the salt of its manifest",
)


@dataclass(frozen=True)
class VerifiedReceipt:
    """A result that passed all checks again.

    Args:
        opened: the result, with the checks of its receipt.
        attestation: the appraisal of the job that was repeated for it.
        record: the record that it was checked by.
        deletion: what the job stated that it destroyed; None if the record has no statement.
        open_questions: what could not be judged, in words.
    """

    opened: OpenedResult
    attestation: Record
    record: ReceiptRecord
    deletion: DeletionStatement | None
    open_questions: tuple[str, ...]


def is_result(folder: Path) -> bool:
    """Returns whether a directory looks like an opened result."""
    return (folder / "receipt.json").is_file() and (folder / "evidence.json").is_file()


def read_receipt_record(folder: Path, named: Path | None) -> ReceiptRecord:
    """Reads the record of the result in `folder`: the one that is named, or else the one beside it.

    Raises:
        UsageError: there is none.
        VerificationError: RECEIPT_INVALID: it is not a receipt record.
    """
    path = find_receipt_record(named or record_directory(folder))
    if not path.is_file():
        raise UsageError(
            ErrorCode.FILE_NOT_FOUND,
            f"the record of {folder}",
            expected=f"{path}, which `trainer submit` and `trainer open` write beside the result",
            found="no such file",
            hint="name it with --record: without evidence and policy a receipt shows which key signed it, no more",
        )
    return parse_receipt_record(read_small_file(path, "record", MAX_RECEIPT_RECORD_BYTES))


def verify_result(
    folder: Path, record: ReceiptRecord, *, policy: Policy | None, at: int | None
) -> VerifiedReceipt:
    """Checks the result in `folder` again.

    Args:
        folder: the opened result, as it was left.
        record: its record.
        policy: judge the job by this policy in place of the recorded one.
        at: judge the job as of this time (Unix seconds) with the recorded collateral, not as of the recorded one.

    Raises:
        UsageError: no such directory.
        VerificationError: the job does not satisfy the policy, or the result is not what the job signed.
    """
    _require_plain_tree(folder)
    attestation = _appraise(record.load_attestation(), policy, at)
    recorded = record.load_restarted()
    restarted = None if recorded is None else _appraise(recorded, policy, at)
    opened = check_result(
        folder,
        attestation,
        terms=record.terms,
        own_recipients=None,
        stanzas=record.sealed.stanzas,
        restarted=restarted,
    )
    _require_same_receipt(folder, record)
    deletion = None
    if record.deletion is not None:
        deletion = verify_deletion_statement(
            record.deletion.canonical(),
            attestation,
            result_sha256=record.sealed.sha256,
            # As the receipt names it, which was compared with the grant's terms: of a joint job, the whole pool.
            manifest_sha256=dataset_sha256(opened.statement) if record.terms else None,
            restarted=restarted,
        )
    questions = _open_questions(record, attestation, policy, at)
    return VerifiedReceipt(opened, attestation, record, deletion, questions)


def _require_plain_tree(folder: Path) -> None:
    """Requires a directory with nothing but files and directories in it: a link would be read and not be signed.

    Raises:
        UsageError: it does not exist.
        VerificationError: RECEIPT_MISMATCH.
    """
    if not folder.is_dir():
        raise UsageError(
            ErrorCode.FILE_NOT_FOUND,
            "a result",
            expected="the directory of an opened result",
            found=str(folder),
        )
    for root, directories, files in os.walk(folder):
        for path in (Path(root, name) for name in (*directories, *files)):
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise VerificationError(
                    ErrorCode.RECEIPT_MISMATCH,
                    f"the result has a file that it must not have: {printable(path.name)}",
                    expected="files and directories",
                    found="a link or a special file",
                )


def _appraise(record: Record, policy: Policy | None, at: int | None) -> Record:
    """Returns a recorded appraisal, repeated under another policy or as of another time if these are given.

    Raises:
        VerificationError: it is no pass.
    """
    moment = record.result.appraised_at if at is None else at
    if policy is not None or at is not None:
        record = reappraise(record, now=moment, policy=policy)
    record.result.require_pass(moment)
    return record


def _require_same_receipt(folder: Path, record: ReceiptRecord) -> None:
    signed = record.receipt.envelope.model_dump(mode="json"), record.receipt.evidence.canonical()
    from_result = parse_envelope((folder / "receipt.json").read_bytes()).model_dump(mode="json")
    if signed != (from_result, (folder / "evidence.json").read_bytes()):
        raise VerificationError(
            ErrorCode.RECEIPT_MISMATCH,
            "the record is of another result",
            expected="the receipt and evidence that the result has",
            found="others",
            hint="name the record of this result with --record",
        )


def _open_questions(
    record: ReceiptRecord, attestation: Record, policy: Policy | None, at: int | None
) -> tuple[str, ...]:
    questions = list(_ALWAYS_OPEN)
    if at is None:
        moment = utc(attestation.result.appraised_at)
        questions.append(
            f"when the job was appraised: {moment} is the record's word; --at judges as of another time"
        )
    if policy is None:
        questions.append(
            "whether the policy in the record is the one you would demand: name yours with --policy"
        )
    if record.terms is None:
        questions += UNCHECKED_WITHOUT_GRANT
    if record.deletion is None:
        questions.append("what the job destroyed at its end: the record has no statement of it")
    return tuple(questions)
