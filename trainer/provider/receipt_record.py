"""`DIR.record/record.json`: what an auditor needs to check an opened result again, years later and offline.

It lies beside the result DIR and has everything that the check took but the result itself and the provider's
private key: the appraisal of the job with its evidence, collateral and policy; the terms of the grant without its
secret; the receipt; the deletion statement; the digest of the sealed result. It has no authority: whoever reads it
repeats the checks.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Self, cast

from pydantic import Field, JsonValue, TypeAdapter

from trainer.atomic_files import PRIVATE_MODE, replace_atomically
from trainer.attestation.evidence import parse_statement_evidence
from trainer.attestation.result.ear import BUILD
from trainer.attestation.result.record import MAX_RECORD_BYTES, Record, load_record, save_record
from trainer.encoding import canonical_json, file_sha256, parse_json
from trainer.models import One, Sha256Hex, Strict, UnixTime
from trainer.receipt.attested_envelope import AttestedEnvelope, parse_attested_envelope
from trainer.receipt.dsse import parse_envelope
from trainer.receipt.expected_result import GrantTerms
from trainer.receipt.statement import parse_receipt_json
from trainer.sealing.age import count_stanzas

RECORD_NAME: Final = "record.json"
MAX_RECEIPT_RECORD_BYTES: Final = 2 * MAX_RECORD_BYTES + (64 << 20)
_DIRECTORY_MODE: Final = 0o700


class SealedFile(Strict):
    """The sealed result as it was pulled: its digest and size, and how many recipients can open it."""

    sha256: Sha256Hex
    bytes: Annotated[int, Field(ge=1)]
    stanzas: Annotated[int, Field(ge=1, le=1 << 16)]

    @classmethod
    def of(cls, path: Path) -> Self:
        """Returns the description of a sealed result."""
        with path.open("rb") as sealed:
            stanzas = count_stanzas(sealed)
        return cls(sha256=file_sha256(path), bytes=path.stat().st_size, stanzas=stanzas)


class ReceiptRecord(Strict):
    """The content of the file.

    Attributes:
        version: 1.
        tool: the build that wrote it.
        opened_at: when the result was opened, by the clock of the machine that opened it.
        attestation: the record of the appraisal that the dataset was sealed on, as `trainer verify -o` saves it.
        restarted: the same of the job as it was started last; None if it was not started again.
        terms: what the grant says a result must be; None if the result was opened without the grant.
        sealed: the sealed result.
        receipt: the receipt and its evidence, as they are in the result too.
        deletion: the job's statement of what it destroyed; None if it gave none.
    """

    version: One
    tool: Annotated[str, Field(max_length=64)]
    opened_at: UnixTime
    attestation: dict[str, JsonValue]
    restarted: dict[str, JsonValue] | None
    terms: GrantTerms | None
    sealed: SealedFile
    receipt: AttestedEnvelope
    deletion: AttestedEnvelope | None

    def load_attestation(self) -> Record:
        """Returns the appraisal that the dataset was sealed on, repeated as of its own time.

        Raises:
            VerificationError: the record does not follow from its evidence.
        """
        return load_record(canonical_json(self.attestation))

    def load_restarted(self) -> Record | None:
        """Returns the appraisal of the job as it was started last, likewise; None if it was not.

        Raises:
            VerificationError: as `load_attestation`.
        """
        return None if self.restarted is None else load_record(canonical_json(self.restarted))


_ADAPTER: Final = TypeAdapter(ReceiptRecord)


@dataclass(frozen=True)
class RecordInputs:
    """What a record is made from, beside the opened result.

    Args:
        record: the appraisal that the dataset was sealed on.
        restarted: the appraisal of the job as it was started last, if it was.
        terms: the grant's; None if it is not at hand.
        sealed: the sealed result.
    """

    record: Record
    restarted: Record | None
    terms: GrantTerms | None
    sealed: SealedFile


def make_receipt_record(folder: Path, inputs: RecordInputs) -> ReceiptRecord:
    """Returns the receipt record in `folder` that was opened just now, as yet without a deletion statement."""
    envelope, evidence = (
        (folder / name).read_bytes() for name in ("receipt.json", "evidence.json")
    )
    return ReceiptRecord(
        version=1,
        tool=BUILD,
        opened_at=int(time.time()),
        attestation=_document(inputs.record),
        restarted=_document(inputs.restarted) if inputs.restarted else None,
        terms=inputs.terms,
        sealed=inputs.sealed,
        receipt=AttestedEnvelope(
            envelope=parse_envelope(envelope), evidence=parse_statement_evidence(evidence)
        ),
        deletion=None,
    )


def _document(record: Record) -> dict[str, JsonValue]:
    return cast("dict[str, JsonValue]", parse_json(save_record(record)))


def record_directory(folder: Path) -> Path:
    """Returns where the record of the result in `folder` belongs: `DIR.record` beside it."""
    return folder.with_name(f"{folder.name}.record")


def write_receipt_record(
    folder: Path, record: ReceiptRecord, *, deletion: bytes | None = None
) -> None:
    """Writes the record of the result in `folder`, in place of an earlier one of it.

    Args:
        folder: the opened result.
        record: its record.
        deletion: the job's verified statement of what it destroyed, if it gave one.

    Raises:
        OSError: the directory cannot be made, or is a link.
    """
    if deletion is not None:
        attested = parse_attested_envelope(deletion, what="deletion statement")
        record = record.model_copy(update={"deletion": attested})
    directory = record_directory(folder)
    directory.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
    if directory.is_symlink():
        raise NotADirectoryError(f"{directory} is a link")
    with replace_atomically(directory / RECORD_NAME, PRIVATE_MODE) as file:
        file.write(canonical_json(record.model_dump(mode="json")))


def parse_receipt_record(data: bytes) -> ReceiptRecord:
    """Parses the content of a record; verifies nothing.

    Raises:
        VerificationError: RECEIPT_INVALID; the message names the field, never its content.
    """
    return parse_receipt_json(_ADAPTER, data, what="receipt record")


def find_receipt_record(path: Path) -> Path:
    """Returns the file of a record that is given by its name or by its directory."""
    return path / RECORD_NAME if os.path.isdir(path) else path  # noqa: PTH112 -- follows what the user named
