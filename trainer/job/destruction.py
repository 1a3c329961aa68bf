"""Destroys plaintext and keys at the end of a job, then signs a deletion statement with the receipt key."""

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
    """Destroys the remaining plaintext and dataset keys, and signs a statement of that.

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
    destroyed = {DestroyedItem.WORKER: int(time.time())}
    for name, folder in (
        (DestroyedItem.DATASET, workspace.dataset),
        (DestroyedItem.MODEL, workspace.model),
        (DestroyedItem.OUTPUT, workspace.output),
        (DestroyedItem.OUTPUT, workspace.scratch),
        (DestroyedItem.RESULT_TREE, workspace.root / "result"),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():  # checked, not assumed: the provider relies on the statement
            raise JobError(ErrorCode.JOB_FAILED, "plaintext could not be removed")
        destroyed[name] = int(time.time())
    # Truncated, not removed: this process and the front have the logs open and append to them.
    for log in (workspace.private_log, workspace.front_log):
        if log.exists():
            os.truncate(log, 0)
    destroyed[DestroyedItem.LOGS] = int(time.time())
    signer.keys.destroy_identities()
    destroyed[DestroyedItem.IDENTITIES] = int(time.time())
    deletion = DeletionPredicate(
        jobSpecSha256=signer.spec.sha256(),
        datasetManifestSha256=bundle.manifest.sha256(),
        acknowledged=acknowledged,
        destroyed=destroyed,
        signedAt=int(time.time()),
    )
    return sign_envelope(make_deletion_statement(deletion, file_sha256(result)), signer.keys.receipt)
