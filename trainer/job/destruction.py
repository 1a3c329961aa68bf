"""The end of a job: plaintext and keys are destroyed, then the receipt key signs what was, and when."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from trainer.encoding import file_sha256
from trainer.errors import ErrorCode, JobError
from trainer.job.outcome import Signer
from trainer.job.workspace import Workspace
from trainer.receipt.deletion import DeletionPredicate, DestroyedItem, make_deletion_statement
from trainer.receipt.dsse import sign_envelope
from trainer.sealing.bundle import OpenedBundle


def destroy_and_sign(
    signer: Signer, bundle: OpenedBundle, workspace: Workspace, result: Path, *, acknowledged: bool
) -> bytes:
    """Destroy what is left in the clear; returns the signed statement (a DSSE envelope).

    Only what was looked at and is gone is listed. Of the keys only the receipt key is left, to sign with; it goes
    with this process. The worker has ended before its output is sealed.

    Args:
        signer: its keys for datasets cannot be used afterwards.
        bundle: what was trained on.
        workspace: emptied; of the private logs the files stay, with nothing in them.
        result: the sealed result; it stays for who comes late.
        acknowledged: whether the provider said that it has the result.

    Raises:
        JobError: something could not be removed: then nothing is signed.
    """
    destroyed = {DestroyedItem.WORKER: _now()}
    for name, folder in (
        (DestroyedItem.DATASET, workspace.dataset),
        (DestroyedItem.MODEL, workspace.model),
        (DestroyedItem.OUTPUT, workspace.output),
        (DestroyedItem.OUTPUT, workspace.scratch),
        (DestroyedItem.RESULT_TREE, workspace.root / "result"),
    ):
        destroyed[name] = _remove(folder)
    destroyed[DestroyedItem.LOGS] = _empty(workspace.private_log, workspace.front_log)
    signer.keys.destroy_identities()
    destroyed[DestroyedItem.IDENTITIES] = _now()
    deletion = DeletionPredicate(
        jobSpecSha256=signer.spec.sha256(),
        datasetManifestSha256=bundle.manifest.sha256(),
        acknowledged=acknowledged,
        destroyed=destroyed,
        signedAt=_now(),
    )
    return sign_envelope(make_deletion_statement(deletion, file_sha256(result)), signer.keys.receipt)


def _remove(folder: Path) -> int:
    """Remove a directory; returns when it was gone, in Unix seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise JobError(ErrorCode.JOB_FAILED, "plaintext could not be removed")
    return _now()


def _empty(*logs: Path) -> int:
    """Cut files down to nothing; whoever has one open appends from there."""
    for log in logs:
        if log.exists():
            os.truncate(log, 0)
    return _now()


def _now() -> int:
    return int(time.time())
