"""The data provider's single steps. Each command imports what it needs when it is called, so `--help` is fast."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.cli.console import print_json, print_line, print_summary
from trainer.cli.notify_option import notify_at_end
from trainer.cli.options import (
    DEFAULT_MAX_RESULT_BYTES,
    AcceptedProviders,
    AdapterDir,
    GrantFile,
    ImportedRecord,
    JobFile,
    JobUrl,
    Json,
    MaxBytes,
    MaxDelta,
    MaxEpsilon,
    Notify,
    PolicyFile,
    Quiet,
    RecordFile,
    SigningIdentity,
    Source,
    load_attestation,
    load_identity,
    require_absent,
)
from trainer.errors import ErrorCode, UnavailableError, UsageError, VerificationError

if TYPE_CHECKING:
    from trainer.attestation.result.record import Record
    from trainer.provider.transport.carrier import Carrier


def seal_data(
    data: Annotated[list[Path], typer.Argument(help="Data files, or folders of them.")],
    policy: PolicyFile,
    recipient: Annotated[
        list[str], typer.Option("--recipient", "-r", help="Who the result is for; repeatable.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The sealed dataset.")],
    attestation: RecordFile = None,
    imported: ImportedRecord = None,
    identity: SigningIdentity = None,
    job: JobFile = None,
    adapter: AdapterDir = None,
    grant: GrantFile = None,
    max_epsilon: MaxEpsilon = None,
    max_delta: MaxDelta = None,
    accept: AcceptedProviders = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Encrypt data files to an appraised job. Keeps the grant (secret) in OUTPUT.grant.json.

    With the --grant of an earlier sealing, a job that was restarted continues from its checkpoints.
    """
    from trainer import provider
    from trainer.cli.terminal_progress import TerminalProgress
    from trainer.sealing.joint_terms import make_joint_terms

    record = load_attestation(attestation, imported, policy)
    grant_file = output.with_name(output.name + ".grant.json")
    # Before the rows are read and sealed, which may take long: both files are written at the end.
    for path in (output, grant_file):
        require_absent(path)
    own = load_identity(identity) if identity else None
    own_recipients = [str(one.recipient()) for one in own.identities] if own else []
    with TerminalProgress(quiet=quiet or as_json) as progress:
        grant_record = provider.seal_dataset(
            provider.find_data_files(data, adapter),
            record.result,
            recipient,
            output,
            progress=lambda done, total: progress.bytes_done("sealing", done, total),
            spec=provider.attested_job_spec(record, job),
            secret=provider.read_grant_record(grant).grant.secret if grant else None,
            require=provider.make_privacy_demand(max_epsilon, max_delta),
            key=own.provider_key if own else None,
            joint=make_joint_terms(accept, own_recipients) if accept else None,
        )
    provider.write_private_file(grant_file, grant_record.model_dump_json().encode())
    print_summary(
        {
            "sealed": str(output),
            "grant": str(grant_file),
            "rows": grant_record.rows,
            "manifest": grant_record.manifest_sha256,
        },
        as_json=as_json,
    )


def upload_dataset(
    sealed: Annotated[Path, typer.Argument(help="The file that `trainer seal` wrote.")],
    job_url: JobUrl,
    policy: PolicyFile,
    attestation: RecordFile = None,
    imported: ImportedRecord = None,
    identity: SigningIdentity = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Send a sealed dataset. Continues an upload that was interrupted."""
    from trainer import provider
    from trainer.cli.terminal_progress import TerminalProgress

    record = load_attestation(attestation, imported, policy)
    client = connect_to_appraised_job(job_url, record)
    authorize = provider.make_authorizer(
        load_identity(identity).provider_key if identity else None, record.result
    )
    if not sealed.is_file():
        raise UsageError(ErrorCode.FILE_NOT_FOUND, f"no such file: {sealed}")
    state, size = sealed.with_name(sealed.name + ".upload.json"), sealed.stat().st_size
    with TerminalProgress(quiet=quiet or as_json) as progress:
        client.upload(
            sealed,
            progress=lambda done: progress.bytes_done("uploading", done, size),
            state=state,
            authorize=authorize,
        )
    state.unlink(missing_ok=True)
    print_summary({"uploaded": str(sealed), "bytes": sealed.stat().st_size}, as_json=as_json)


def watch_training(
    source: Source,
    policy: PolicyFile,
    attestation: RecordFile = None,
    imported: ImportedRecord = None,
    identity: Annotated[
        Path | None, typer.Option("--identity", "-i", help="To read private metrics.")
    ] = None,
    grant: GrantFile = None,
    notify: Notify = None,
    as_json: Json = False,
) -> None:
    """Follow a job until its result, or a report, can be pulled. With your identity and grant, also its losses."""
    from trainer import provider
    from trainer.cli.terminal_progress import TerminalProgress
    from trainer.models import Status

    client = connect_to_appraised_job(source, load_attestation(attestation, imported, policy))
    identities = load_identity(identity).identities if identity else ()
    kept = provider.read_grant_record(grant) if grant else None
    token = kept.events_token if kept and identity else None
    with (
        notify_at_end(notify, "watch"),
        TerminalProgress(quiet=as_json, on_stdout=True) as progress,
    ):
        display = provider.EventDisplay(progress)
        for event in provider.watch_job(
            client, identities, token, number=kept.number if kept else None
        ):
            display.show(event)
            if as_json:
                print_json(
                    event.model_dump(mode="json")
                    if isinstance(event, Status)
                    else dict(event.values)
                )
            elif isinstance(event, Status) and event.announces_refusal:
                progress.line(
                    "  the dataset was refused: open its report, mend the data, seal and upload it"
                )


def pull_result(
    source: Source,
    policy: PolicyFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The sealed result; must not exist.")
    ],
    attestation: RecordFile = None,
    imported: ImportedRecord = None,
    grant: GrantFile = None,
    max_bytes: MaxBytes = DEFAULT_MAX_RESULT_BYTES,
    acknowledge: Annotated[
        bool,
        typer.Option(
            "--ack",
            help="With --grant: tell the job that it may end. Better done after `trainer open`.",
        ),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Download the sealed result or failure report. Continues a download that was interrupted.

    The job's verified statement of what it destroyed is kept in OUTPUT.deletion.json.
    """
    from trainer import provider
    from trainer.cli.terminal_progress import TerminalProgress

    record = load_attestation(attestation, imported, policy)
    grant_record = provider.read_grant_record(grant) if grant else None
    if acknowledge and grant_record is None:
        raise UsageError(
            ErrorCode.USAGE, "--ack needs --grant: only who sealed the dataset can acknowledge"
        )
    target = output.with_name(output.name + ".deletion.json")
    for path in (output, target):
        require_absent(path)
    client = connect_to_appraised_job(source, record)
    with TerminalProgress(quiet=quiet or as_json) as progress:
        status = client.status()
        size = provider.require_result_size(status, max_bytes)
        digest = client.download_result(
            output,
            limit=max_bytes,
            progress=lambda done: progress.bytes_done("pulling", done, size),
        )
    manifest_sha256 = grant_record.manifest_sha256 if grant_record else None
    deletion = provider.DeletionReceiver(client, record, target, digest, manifest_sha256)
    statement = None
    try:
        # A job that goes on has destroyed no keys, and states nothing.
        if not status.announces_refusal:
            statement = deletion.fetch()
    except (
        UnavailableError,
        VerificationError,
    ) as error:  # the result is here; the job ended in between
        print_line(f"no valid statement of what the job destroyed: {error.message}", err=True)
    if acknowledge and grant_record is not None:
        try:
            statement = deletion.acknowledge(grant_record) or statement
        except VerificationError as error:
            if error.code not in provider.STATEMENT_ERRORS:
                raise
            print_line(f"no valid answer to the acknowledgement: {error.message}", err=True)
    if statement is None and not status.announces_refusal:
        print_line("the job gave no statement of what it destroyed", err=True)
    print_summary(
        {
            "pulled": str(output),
            "bytes": output.stat().st_size,
            "deletion": str(target) if statement is not None else None,
        },
        as_json=as_json,
    )


def acknowledge_result(
    source: Source,
    policy: PolicyFile,
    grant: Annotated[
        Path,
        typer.Option(
            "--grant", help="The .grant.json that `trainer seal` wrote beside the sealed file."
        ),
    ],
    result: Annotated[
        Path, typer.Option("--result", help="The sealed result that `trainer pull` wrote.")
    ],
    attestation: RecordFile = None,
    imported: ImportedRecord = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Keep the job's verified deletion statement here."),
    ] = None,
) -> None:
    """Tell the job that the result arrived and opened, so that it ends and states what it destroyed."""
    from trainer import provider
    from trainer.encoding import file_sha256

    record = load_attestation(attestation, imported, policy)
    grant_record = provider.read_grant_record(grant)
    provider.require_same_job(grant_record, record.result)
    if not result.is_file():
        raise UsageError(ErrorCode.FILE_NOT_FOUND, f"no such file: {result}")
    if output is not None:
        require_absent(output)
    client = connect_to_appraised_job(source, record)
    deletion = provider.DeletionReceiver(
        client, record, output, file_sha256(result), grant_record.manifest_sha256
    )
    if deletion.acknowledge(grant_record) is None:
        print_line("the job gave no statement of what it destroyed", err=True)


def connect_to_appraised_job(location: str, record: Record) -> Carrier:
    """Returns a client that talks to the appraised job only."""
    from trainer.encoding import sha256_hex
    from trainer.provider import connect_to_job

    # Evidence from a file came over no connection, but its claims name the job's key.
    claimed = record.result.claims.tls_key
    key = None if claimed is None else sha256_hex(bytes.fromhex(claimed))
    return connect_to_job(location, pinned_spki_sha256=key)
