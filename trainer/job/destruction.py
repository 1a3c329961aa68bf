"""Destroys plaintext and keys at the end of a job, then makes the attested deletion statement."""

from __future__ import annotations

import os
import time
from pathlib import Path

from trainer.errors import ErrorCode, JobError
from trainer.job.end_record import EndRecord
from trainer.job.job_keys import JobKeys
from trainer.job.result_statements import ReceiptSigner
from trainer.job.tree_removal import remove_tree
from trainer.job.workspace import Workspace
from trainer.receipt.attested_envelope import AttestedEnvelope
from trainer.receipt.deletion import DeletionPredicate, DestroyedItem, make_deletion_statement
from trainer.receipt.dsse import parse_envelope


def destroy_plaintext(keys: JobKeys, workspace: Workspace) -> dict[DestroyedItem, int]:
    """Destroys the plaintext and the dataset keys; returns when, in Unix seconds, for each item.

    An item is listed only after its removal was checked. The receipt key survives until this process ends, since
    it signs the statement.

    Args:
        keys: the job's keys; the dataset keys among them are unusable afterwards.
        workspace: emptied; the private log files remain, truncated to zero bytes.

    Raises:
        JobError: a directory could not be removed.
    """
    # The worker ended before its output was sealed: its memory, which held plaintext, is free since then.
    destroyed = {DestroyedItem.WORKER: int(time.time())}
    for name, folder in (
        (DestroyedItem.DATASET, workspace.dataset),
        (DestroyedItem.MODEL, workspace.model),
        (DestroyedItem.OUTPUT, workspace.output),
        (DestroyedItem.OUTPUT, workspace.scratch),
        (DestroyedItem.OUTPUT, workspace.all_tries),  # of tries that were not made
        (DestroyedItem.RESULT_TREE, workspace.result),
    ):
        _remove(folder)
        destroyed[name] = int(time.time())
    _empty_logs(workspace)
    destroyed[DestroyedItem.LOGS] = int(time.time())
    keys.destroy_identities()
    destroyed[DestroyedItem.IDENTITIES] = int(time.time())
    return destroyed


def destroy_try(workspace: Workspace) -> None:
    """Destroys what a refused dataset left, before another one is accepted: its rows, output, report and logs.

    Raises:
        JobError: a directory could not be removed.
    """
    for folder in (workspace.own, workspace.result):
        _remove(folder)
    # The worker wrote about rows to the log, and the log is sealed to the next provider with the next result.
    _empty_logs(workspace)


def _remove(folder: Path) -> None:
    remove_tree(folder)
    if folder.exists():  # checked, not assumed: the provider relies on the statement
        raise JobError(ErrorCode.JOB_FAILED, "plaintext could not be removed")


def _empty_logs(workspace: Workspace) -> None:
    # Truncated, not removed: this process and the front have the logs open and append to them.
    for log in (workspace.private_log, workspace.front_log):
        if log.exists():
            os.truncate(log, 0)


def attest_deletion(signer: ReceiptSigner, record: EndRecord) -> bytes:
    """Returns the attested deletion statement of a job that ended as `record` says.

    With a quote of its own: a start that only offers the result of an earlier one has another receipt key.

    Raises:
        UnavailableError: the guest agent issues no quote.
    """
    now = int(time.time())
    deletion = DeletionPredicate(
        jobSpecSha256=signer.spec.sha256(),
        datasetManifestSha256=record.dataset_manifest_sha256,
        acknowledged=record.acknowledged,
        destroyed=record.destroyed,
        signedAt=now,
    )
    statement = make_deletion_statement(deletion, record.result_sha256)
    envelope, evidence = signer.attest(statement, "deletion", issued_at=now)
    return AttestedEnvelope(envelope=parse_envelope(envelope), evidence=evidence).canonical()
