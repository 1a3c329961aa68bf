"""The receipt that a joint job makes for one provider: it names the files of that provider's dataset."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from trainer.attestation.result.record import Record
from trainer.errors import ErrorCode, VerificationError
from trainer.receipt.attested_statement import verify_attested
from trainer.receipt.expected_result import GrantTerms
from trainer.receipt.statement import Statement, dataset_dependencies, parse_statement
from trainer.sealing.age import Identity, decrypt
from trainer.spec.pool_names import pool_folder, pool_name


def check_own_receipt(
    folder: Path,
    identities: Sequence[Identity],
    common: Statement,
    terms: GrantTerms,
    record: Record,
    restarted: Record | None,
) -> None:
    """Checks the provider's own receipt in the opened result of a joint job; nothing to do in another job.

    Args:
        folder: the opened result, whose files are those that `common` lists.
        identities: the provider's.
        common: the statement of `receipt.json`.
        terms: the grant's.
        record: the appraisal that the dataset was sealed on.
        restarted: the appraisal of the job as it was started last, if it was.

    Raises:
        SealingError: it is sealed to somebody else.
        VerificationError: it is not signed by the job, or names other files or another run.
    """
    if terms.pool is None:
        return
    document = io.BytesIO()
    with (folder / "receipts" / f"{pool_folder(terms.pool.number)}.age").open("rb") as sealed:
        decrypt(sealed, document, identities)
    own = parse_statement(
        verify_attested(document.getvalue(), "receipt", record, restarted=restarted)
    )
    run, of_common = (one.predicate.runDetails.metadata.invocationId for one in (own, common))
    files = {
        pool_name(terms.pool.number, name): digest for name, digest in terms.dataset_files.items()
    }
    if run != of_common or _datasets(own) != _datasets(common) | dict(dataset_dependencies(files)):
        raise VerificationError(
            ErrorCode.RECEIPT_MISMATCH,
            "the receipt for this provider",
            expected="the files that were sealed, and the digests of the other providers' datasets",
            found="other ones",
            hint="nothing was written; do not use this result",
        )


def _datasets(statement: Statement) -> dict[str, str]:
    dependencies = statement.predicate.buildDefinition.resolvedDependencies
    return {one.name: one.digest.sha256 for one in dependencies if one.name.startswith("data/")}
