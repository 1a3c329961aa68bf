"""Destroy plaintext and keys at the end of a job, then sign a deletion statement with the receipt key."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from trainer.encoding import file_sha256
from trainer.errors import ErrorCode, JobError
from trainer.job.outcome import ReceiptSigner
from trainer.job.workspace import Workspace
from trainer.receipt.deletion import DeletionPredicate, DestroyedItem, make_deletion_statement
from trainer.receipt.dsse import sign_envelope
from trainer.sealing.bundle import OpenedBundle


def destroy_and_sign(
    signer: ReceiptSigner, bundle: OpenedBundle, workspace: Workspace, result: Path, *, acknowledged: bool
) -> bytes:
    """Destroy the remaining plaintext and dataset keys, and sign a statement of that.

    The statement lists an item only after its removal was checked. The receipt key has to sign, so it survives
    until this process ends.

    Args:
        signer: the job's keys; its dataset keys are unusable afterwards.
        bundle: the dataset that was trained on.
        workspace: emptied; the private log files remain, truncated to zero bytes.
        result: the sealed result, which stays and whose digest the statement contains.
        acknowledged: whether the provider confirmed that it received the result.

    Returns:
        the signed statement, a DSSE envelope.

    Raises:
        JobError: a directory could not be removed; nothing is signed.
    """
    # The worker ended before its output was sealed: its memory, which held plaintext, is free since then.
    destroyed = {DestroyedItem.WORKER: _unix_seconds()}
    for name, folder in (
        (DestroyedItem.DATASET, workspace.dataset),
        (DestroyedItem.MODEL, workspace.model),
        (DestroyedItem.OUTPUT, workspace.output),
        (DestroyedItem.OUTPUT, workspace.scratch),
        (DestroyedItem.RESULT_TREE, workspace.root / "result"),
    ):
        destroyed[name] = _remove_directory(folder)
    destroyed[DestroyedItem.LOGS] = _truncate(workspace.private_log, workspace.front_log)
    signer.keys.destroy_identities()
    destroyed[DestroyedItem.IDENTITIES] = _unix_seconds()
    deletion = DeletionPredicate(
        jobSpecSha256=signer.spec.sha256(),
        datasetManifestSha256=bundle.manifest.sha256(),
        acknowledged=acknowledged,
        destroyed=destroyed,
        signedAt=_unix_seconds(),
    )
    return sign_envelope(make_deletion_statement(deletion, file_sha256(result)), signer.keys.receipt)


def _remove_directory(folder: Path) -> int:
    """Remove a directory; returns the Unix time, in seconds, at which it no longer existed.

    Raises:
        JobError: it still exists.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():  # checked, not assumed: the provider relies on the statement
        raise JobError(ErrorCode.JOB_FAILED, "plaintext could not be removed")
    return _unix_seconds()


def _truncate(*logs: Path) -> int:
    """Truncate files to zero bytes; returns the Unix time in seconds.

    The files stay, since this process and the front have them open and append to them.
    """
    for log in logs:
        if log.exists():
            os.truncate(log, 0)
    return _unix_seconds()


def _unix_seconds() -> int:
    return int(time.time())
