"""The end of an exchange: keep the job's deletion statement, then tell the job that its result has arrived.

A job states what it destroyed before anyone acknowledges, and serves the statement beside the result: so it is
kept with the result, whatever happens to the job afterwards. After an acknowledgement the job signs it once more,
and it then says that the result arrived.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trainer.atomic_files import PRIVATE_MODE, replace_atomically
from trainer.attestation.result.record import Record
from trainer.errors import ErrorCode
from trainer.provider.grants import GrantRecord
from trainer.provider.transport.carrier import Carrier
from trainer.provider.verification import verify_deletion_statement
from trainer.receipt.deletion import DeletionStatement
from trainer.receipt.statement import Statement, dataset_sha256

STATEMENT_ERRORS: Final = frozenset({ErrorCode.RECEIPT_INVALID, ErrorCode.RECEIPT_MISMATCH})
"""What a deletion statement that does not hold is refused with."""


@dataclass(frozen=True)
class DeletionReceiver:
    """Receives the deletion statement of one job about one sealed result.

    Args:
        client: carrier of the job.
        record: the appraisal of the job.
        target: file for the statement; it holds none but one that was verified. None keeps it nowhere.
        result_sha256: digest of the sealed result, in hex.
        manifest_sha256: digest of the dataset's manifest, in hex; None if it is not known here.
        restarted: the appraisal of the job as it was started last, if it was.
    """

    client: Carrier
    record: Record
    target: Path | None
    result_sha256: str
    manifest_sha256: str | None
    restarted: Record | None = None

    def about(self, receipt: Statement) -> DeletionReceiver:
        """Returns the receiver for the dataset that a checked receipt names: the pool, in a joint job."""
        return replace(self, manifest_sha256=dataset_sha256(receipt))

    def fetch(self) -> DeletionStatement | None:
        """Fetches the statement from beside the result, and keeps it; None if there is none.

        Raises:
            UnavailableError: there is no result yet, or the job cannot be reached.
            VerificationError: `receipt-invalid` or `receipt-mismatch`.
        """
        document = self.client.deletion_statement()
        return None if document is None else self._keep(document)

    def acknowledge(self, grant: GrantRecord) -> DeletionStatement | None:
        """Acknowledges the result, and keeps the statement that the job then signs; None if it sends none.

        Raises:
            UsageError: the grant is another one than that of the job's dataset.
            UnavailableError: there is no result, or the job cannot be reached.
            VerificationError: `receipt-invalid` or `receipt-mismatch`.
        """
        document = self.client.acknowledge(grant.acknowledgement(self.result_sha256))
        return None if document is None else self._keep(document)

    def verify(self, document: bytes) -> DeletionStatement:
        """Returns the statement in what the job gave out.

        Raises:
            VerificationError: `receipt-invalid` or `receipt-mismatch`.
        """
        return verify_deletion_statement(
            document,
            self.record,
            result_sha256=self.result_sha256,
            manifest_sha256=self.manifest_sha256,
            restarted=self.restarted,
        )

    def _keep(self, document: bytes) -> DeletionStatement:
        statement = self.verify(document)
        if self.target is not None:
            with replace_atomically(self.target, PRIVATE_MODE) as file:
                file.write(document)
        return statement
