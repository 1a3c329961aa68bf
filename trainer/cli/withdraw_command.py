"""The command `trainer withdraw`: take a dataset back from a joint job that still waits for others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.cli.console import print_summary
from trainer.cli.options import (
    IdentityFile,
    ImportedRecord,
    JobUrl,
    Json,
    PolicyFile,
    RecordFile,
    load_attestation,
    load_identity,
    local_secret,
)
from trainer.cli.provider_commands import connect_to_appraised_job
from trainer.errors import ErrorCode, UsageError

if TYPE_CHECKING:
    from trainer.attestation.result.record import Record
    from trainer.provider.grants import GrantRecord


def withdraw(
    grant: Annotated[
        Path,
        typer.Argument(
            metavar="GRANT",
            help="The .grant.json that `trainer seal` wrote, or the OUTPUT.submission of `trainer submit`.",
        ),
    ],
    job_url: JobUrl,
    policy: PolicyFile,
    identity: IdentityFile,
    attestation: RecordFile = None,
    imported: ImportedRecord = None,
    as_json: Json = False,
) -> None:
    """Take your dataset back from a job of several providers, as long as it has not begun to train."""
    from trainer import provider

    if grant.is_dir():
        record, kept = _read_submission(grant, policy)
    else:
        record = load_attestation(attestation, imported, policy)
        kept = provider.read_grant_record(grant)
    key = load_identity(identity).provider_key
    if key is None:
        raise UsageError(
            ErrorCode.IDENTITY_INVALID,
            "the identity file",
            expected="one with the provider key that signed the dataset",
            found="none in it",
        )
    provider.withdraw_dataset(connect_to_appraised_job(job_url, record), kept, key)
    print_summary({"withdrawn": kept.manifest_sha256}, as_json=as_json)


def _read_submission(folder: Path, policy: Path) -> tuple[Record, GrantRecord]:
    from trainer.provider import read_policy
    from trainer.provider.submission_directory import SubmissionDirectory

    directory = SubmissionDirectory(folder, local_secret(), read_policy(policy))
    grant = directory.load_grant()
    record = directory.load_restarted() or directory.load_record(now=time.time())
    if grant is None or record is None:
        raise UsageError(ErrorCode.USAGE, f"no dataset has been sealed in {folder}")
    return record, grant
