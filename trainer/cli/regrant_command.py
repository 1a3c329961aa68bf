"""The `regrant` command: let a job that was restarted open the sealed dataset that it kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.console import print_line, print_summary
from trainer.cli.options import (
    IdentityFile,
    JobUrl,
    Json,
    PolicyFile,
    cache_directory,
    load_identity,
    local_secret,
    nonces_file,
)


def regrant_job(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|FILE",
            help="OUTPUT of `trainer submit`, or the .grant.json of `trainer seal`.",
        ),
    ],
    job_url: JobUrl,
    policy: PolicyFile,
    identity: IdentityFile,
    as_json: Json = False,
) -> None:
    """Verify a restarted job and grant it the dataset that it kept: a few kilobytes in place of the data."""
    from trainer import provider

    own, grant = load_identity(identity), provider.find_grant_record(directory, local_secret())
    job = provider.connect_to_job(job_url)
    record = provider.appraise_job(
        job, provider.read_policy(policy), cache=cache_directory(), nonces=nonces_file()
    )
    record.result.require_pass(record.result.appraised_at)
    for caution in record.result.cautions:
        print_line(f"CAUTION: {caution}", err=True)
    client = provider.connect_to_job(job_url, pinned_spki_sha256=record.result.peer_spki_sha256)
    sent = provider.send_regrant(client, grant, record.result, own.identities, own.provider_key)
    status = provider.wait_regranted(client, grant)
    print_summary(
        {"granted": grant.manifest_sha256, "bytes": sent, "phase": status.phase.value},
        as_json=as_json,
    )
