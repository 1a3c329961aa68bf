"""Commands of the data provider. Each imports what it needs when it is called, so that `--help` stays quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.cli.audit_command import audit
from trainer.cli.console import Report, print_checks, print_json
from trainer.cli.options import (
    GrantFile,
    IdentityFile,
    JobFile,
    JobUrl,
    Json,
    MaxDelta,
    MaxEpsilon,
    PolicyFile,
    Quiet,
    RecordFile,
    Source,
    cache_directory,
    nonces_file,
)
from trainer.cli.policy_command import policy_app
from trainer.cli.validate_command import validate
from trainer.cli.verify_command import verify
from trainer.errors import ErrorCode, UsageError

if TYPE_CHECKING:
    from pydantic import JsonValue

    from trainer.attestation.checks import Check


def keygen(
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the identity; never overwritten.")],
    x25519: Annotated[
        bool, typer.Option("--x25519", help="Without post-quantum protection, for old age tools.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make your identity: the key that results are encrypted to. Prints its recipient (the public half)."""
    from trainer.provider import new_identity

    recipient = new_identity(output, hybrid=not x25519)
    if as_json:
        print_json({"identity": str(output), "recipient": recipient})
    else:
        typer.echo(recipient)


def seal(
    data: Annotated[list[Path], typer.Argument(help="Data files, or folders of them.")],
    attestation: RecordFile,
    recipient: Annotated[list[str], typer.Option("--recipient", "-r", help="Who the result is for; repeatable.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The sealed dataset.")],
    job: JobFile = None,
    grant: GrantFile = None,
    max_epsilon: MaxEpsilon = None,
    max_delta: MaxDelta = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Encrypt data files to an appraised job. Keeps the grant (secret) in OUTPUT.grant.json.

    With --grant of an earlier sealing, a job that was restarted goes on from its checkpoints.
    """
    from trainer import provider

    record = provider.read_record(attestation)
    grant_file = output.with_name(output.name + ".grant.json")
    for path in (output, grant_file):
        if path.exists():
            raise UsageError(ErrorCode.OUTPUT_EXISTS, f"{path} exists", hint="choose another name with -o")
    with Report(quiet=quiet or as_json) as report:
        made = provider.seal_dataset(
            provider.data_files(data),
            record.result,
            recipient,
            output,
            progress=lambda done, total: report.bytes_done("sealing", done, total),
            job=job,
            token=provider.read_grant(grant).grant.token if grant else None,
            require=provider.privacy_demand(max_epsilon, max_delta),
        )
    provider.write_private(grant_file, made.model_dump_json().encode())
    summary = {
        "sealed": str(output),
        "grant": str(grant_file),
        "rows": made.rows,
        "manifest": made.manifest_sha256,
    }
    _print_summary(summary, as_json=as_json)


def upload(
    sealed: Annotated[Path, typer.Argument(help="The file that `trainer seal` wrote.")],
    job_url: JobUrl,
    attestation: RecordFile,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Send a sealed dataset; goes on where a broken connection left off."""
    from trainer import provider

    record = provider.read_record(attestation)
    client = provider.connect_to_job(job_url, pinned_spki_sha256=record.result.peer_spki_sha256)
    if not sealed.is_file():
        raise UsageError(ErrorCode.FILE_NOT_FOUND, f"no such file: {sealed}")
    state, size = sealed.with_name(sealed.name + ".upload.json"), sealed.stat().st_size
    with Report(quiet=quiet or as_json) as report:
        client.upload(sealed, progress=lambda done: report.bytes_done("uploading", done, size), state=state)
    state.unlink(missing_ok=True)
    _print_summary({"uploaded": str(sealed), "bytes": sealed.stat().st_size}, as_json=as_json)


def watch(
    source: Source,
    attestation: RecordFile,
    identity: Annotated[Path | None, typer.Option("--identity", "-i", help="To read private metrics.")] = None,
    grant: GrantFile = None,
    as_json: Json = False,
) -> None:
    """Follow a job until its result can be pulled. With your identity and grant, also its losses."""
    from trainer import provider
    from trainer.models import Status
    from trainer.provider.submission import describe_metrics

    record = provider.read_record(attestation)
    client = provider.connect_to_job(source, pinned_spki_sha256=record.result.peer_spki_sha256)
    identities = provider.read_identities(identity) if identity else ()
    token = provider.read_grant(grant).grant.token if grant and identity else None
    for event in provider.watch(client, identities, token):
        if as_json:
            print_json(event.model_dump(mode="json") if isinstance(event, Status) else dict(event.values))
        elif isinstance(event, Status):
            eta = f", {event.eta_seconds} s left" if event.eta_seconds is not None else ""
            steps = f" step {event.step} of {event.total_steps}{eta}" if event.total_steps else ""
            typer.echo(f"{event.phase.value}{steps}" + (f" ({event.error})" if event.error else ""))
        else:
            typer.echo("  " + describe_metrics(event))


def pull(
    source: Source,
    attestation: RecordFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="The sealed result.")],
    acknowledge: Annotated[
        bool, typer.Option("--ack", help="Tell the job that it may end. Better done after `trainer open`.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fetch the sealed result (or failure report); resumes a broken download."""
    from trainer import provider

    record = provider.read_record(attestation)
    client = provider.connect_to_job(source, pinned_spki_sha256=record.result.peer_spki_sha256)
    with Report(quiet=quiet or as_json) as report:
        size = client.status().result_bytes or 0
        client.download_result(output, progress=lambda done: report.bytes_done("pulling", done, size))
    if acknowledge:
        client.acknowledge()
    _print_summary({"pulled": str(output), "bytes": output.stat().st_size}, as_json=as_json)


def acknowledge(
    source: Source,
    attestation: RecordFile,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Keep the job's checked deletion statement here.")
    ] = None,
) -> None:
    """Tell the job that the result arrived and opened, so that it ends and says what it destroyed."""
    from trainer import provider

    record = provider.read_record(attestation)
    client = provider.connect_to_job(source, pinned_spki_sha256=record.result.peer_spki_sha256)
    if (envelope := client.acknowledge()) is None:
        typer.echo("the job gave no statement of what it destroyed", err=True)
        return
    provider.check_deletion_of(envelope, record)
    if output is not None:
        provider.write_private(output, envelope)


def open_(
    sealed: Annotated[Path, typer.Argument(metavar="FILE", help="The sealed result.")],
    identity: IdentityFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for the result; must not exist.")],
    attestation: RecordFile,
    grant: GrantFile = None,
    as_json: Json = False,
) -> None:
    """Decrypt a result and check its receipt; writes nothing unless every check holds."""
    from trainer import provider
    from trainer.provider import opening

    opened = opening.open_sealed_result(
        sealed,
        provider.read_identities(identity),
        output,
        record=provider.read_record(attestation),
        grant=provider.read_grant(grant) if grant else None,
    )
    if not as_json:
        print_checks(opened.checks, title="the result's receipt")
    if (failure := opened.failure) is not None:
        raise failure
    _print_summary(
        {
            "adapter_dir": str(opened.adapter),
            "checks": check_states(opened.checks),
            **_privacy(opened.statement.privacy),
            "summary": opened.statement.metrics,
        },
        as_json=as_json,
        show=("adapter_dir", "privacy"),
    )


def submit(
    data: Annotated[list[Path], typer.Argument(help="Data files, or folders of them.")],
    job_url: JobUrl,
    policy: PolicyFile,
    identity: IdentityFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for the result; must not exist.")],
    job: JobFile = None,
    max_epsilon: MaxEpsilon = None,
    max_delta: MaxDelta = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """All of it: verify → seal → upload → watch → pull → open. Repeat the command to go on after a break."""
    from trainer import provider
    from trainer.provider.submission import Submission
    from trainer.provider.submission import submit as run

    submission = Submission(
        data,
        job_url,
        policy,
        provider.read_identities(identity),
        output,
        cache=cache_directory(),
        nonces=nonces_file(),
        job=job,
        require=provider.privacy_demand(max_epsilon, max_delta),
    )
    with Report(quiet=quiet) as report:
        submitted = run(submission, report)
    if not as_json and not quiet:
        opened = len(submitted.result.checks)
        print_checks(submitted.checks[:-opened], title="the job's evidence")
        print_checks(submitted.checks[-opened:], title="the result's receipt")
    if (failure := submitted.result.failure) is not None:
        raise failure
    result = submitted.result
    _print_summary(
        {
            "adapter_dir": str(result.adapter),
            "checks": check_states(submitted.checks),
            "receipt": {
                "job_spec_sha256": result.statement.predicate.buildDefinition.externalParameters.jobSpecSha256
            },
            **_privacy(result.statement.privacy),
            "summary": dict(result.statement.metrics),
            "seconds": dict(submitted.seconds),
            "deletion": submitted.deletion.predicate.model_dump(mode="json") if submitted.deletion else None,
        },
        as_json=as_json,
        show=("adapter_dir", "privacy"),
    )


def _privacy(found: JsonValue) -> dict[str, object]:
    """One line from the receipt, where it speaks of the weights' privacy."""
    differential = found.get("differential") if isinstance(found, dict) else None
    if not isinstance(differential, dict):
        return {}
    return {"privacy": f"ε = {differential.get('epsilon')} at δ = {differential.get('delta')} for each row"}


def check_states(checks: tuple[Check, ...]) -> dict[str, str]:
    """Check code → state, in the order of the checks."""
    return {check.code: check.state.value for check in checks}


def _print_summary(summary: dict[str, object], *, as_json: bool, show: tuple[str, ...] | None = None) -> None:
    if as_json:
        print_json(summary)
        return
    for name, value in summary.items():
        if show is None or name in show:
            typer.echo(f"{name}: {value}")


def register(app: typer.Typer) -> None:
    """Add the provider's commands to `app`, in the order of the story."""
    app.command("keygen")(keygen)
    app.command("audit")(audit)
    app.add_typer(policy_app, name="policy")
    app.command("verify")(verify)
    app.command("validate")(validate)
    app.command("submit")(submit)
    app.command("seal")(seal)
    app.command("upload")(upload)
    app.command("watch")(watch)
    app.command("pull")(pull)
    app.command("open")(open_)
    app.command("ack")(acknowledge)
