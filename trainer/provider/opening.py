"""The open step: decrypt a result into a temporary directory, check its receipt, and move it into place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from trainer.attestation.result.record import Record
from trainer.provider.grants import GrantRecord, require_same_job
from trainer.provider.local_files import require_absent
from trainer.provider.own_receipt import check_own_receipt
from trainer.provider.receipt_record import RecordInputs, SealedFile, make_receipt_record
from trainer.provider.result_check import OpenedResult, check_result
from trainer.sealing.age import Identity
from trainer.sealing.archive import ArchiveLimits
from trainer.sealing.sealed_result import open_result

UNCHECKED_WITHOUT_GRANT: Final = (
    "which dataset it was trained on",
    "how many of its rows",
    "who else can read it",
    "the privacy that the grant demanded",
)
"""What is not known of a result that is opened without the grant record, for its user."""


def open_sealed_result(
    source: Path,
    identities: Sequence[Identity],
    target: Path,
    *,
    record: Record,
    grant: GrantRecord | None,
    restarted: Record | None = None,
) -> OpenedResult:
    """Opens a sealed result into the new directory `target`, which is not created unless every check passes.

    A failure report is opened in the same way; `OpenedResult.failure` then is not None.

    Args:
        source: the sealed result.
        identities: the provider's.
        target: must not exist.
        record: the appraisal that the dataset was sealed on. It may have expired since: training takes time.
        grant: the provider's grant record; None leaves `UNCHECKED_WITHOUT_GRANT` unchecked, which the result says.
        restarted: the appraisal of the job as it was started last, if it was.

    Raises:
        UsageError: `target` exists.
        SealingError: wrong identity, or the file is truncated or was tampered with.
        VerificationError: `receipt-invalid`, `receipt-mismatch`, or `grant-mismatch`.
    """
    require_absent(target)
    record.result.require_pass(record.result.appraised_at)
    terms = grant.terms() if grant else None
    if grant is not None:
        require_same_job(grant, record.result)
    # Decrypted beside the target, so that plaintext appears there by one rename after the last check.
    with _temporary_sibling(target) as folder:
        # Neither tar nor age compresses: what is inside cannot be larger than the file.
        open_result(
            source, identities, folder, limits=ArchiveLimits(max_bytes=source.stat().st_size)
        )
        sealed = SealedFile.of(source)
        opened = check_result(
            folder,
            record,
            terms=terms,
            own_recipients=[str(identity.recipient()) for identity in identities],
            stanzas=sealed.stanzas,
            restarted=restarted,
        )
        if terms is not None and opened.failure is None:
            check_own_receipt(folder, identities, opened.statement, terms, record, restarted)
        made = make_receipt_record(folder, RecordInputs(record, restarted, terms, sealed))
        folder.rename(target)
    unchecked = UNCHECKED_WITHOUT_GRANT if grant is None else ()
    return replace(opened, folder=target, unchecked=unchecked, record=made)


@contextmanager
def _temporary_sibling(target: Path) -> Iterator[Path]:
    """Yields a private directory on the file system of `target`; removes it afterwards unless it was moved."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".partial", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
