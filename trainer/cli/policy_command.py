"""The `policy` commands: write a policy for reviewed files, and explain a policy in words."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trainer.cli.audit_command import print_review, read_compose
from trainer.cli.console import print_line, print_wrapped
from trainer.cli.options import JOB_LOCATION, cache_directory, nonces_file
from trainer.errors import ErrorCode, UsageError

if TYPE_CHECKING:
    from trainer.attestation.policy import Policy
    from trainer.attestation.result.record import Record
    from trainer.provider import PolicyDemands

policy_app = typer.Typer(
    help="Write and read policies: what you demand of a job.", no_args_is_help=True
)


@policy_app.command("init")
def policy_init(
    job: Annotated[
        list[Path], typer.Option("--job", help="job.yaml that you reviewed; repeatable.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The policy; never overwritten.")],
    app_compose: Annotated[
        Path | None,
        typer.Option("--app-compose", help="app-compose.json that you reviewed; exact bytes."),
    ] = None,
    from_job: Annotated[
        str | None,
        typer.Option(
            "--from-job",
            metavar="URL",
            help=f"Instead of --app-compose: take the text that a job's quote carries. {JOB_LOCATION}",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="FILE", help="With --from-job: app-compose.json that you reviewed."
        ),
    ] = None,
    accept_compose: Annotated[
        str | None,
        typer.Option(
            "--accept-compose",
            metavar="sha256:HEX",
            help="With --from-job: accept the text of this digest although it differs.",
        ),
    ] = None,
    save_compose: Annotated[
        Path | None,
        typer.Option(
            "--save-compose",
            metavar="FILE",
            help="With --from-job: write the text here, to read it.",
        ),
    ] = None,
    trust_root: Annotated[
        Path | None,
        typer.Option(
            "--trust-root", help="PEM of a root other than Intel's, such as a development root."
        ),
    ] = None,
    collateral: Annotated[
        str | None,
        typer.Option(
            "--collateral", help="A file, or the URL of a PCCS; Intel's service if absent."
        ),
    ] = None,
    measurements: Annotated[
        list[Path] | None,
        typer.Option(
            "--measurements",
            help="JSON with mrtd and rtmr0-2 of an OS image you trust; repeatable.",
        ),
    ] = None,
    gpu: Annotated[
        bool, typer.Option("--gpu/--no-gpu", help="Demand confidential GPUs with fresh reports.")
    ] = True,
    recipient: Annotated[
        Literal["instance", "derived"],
        typer.Option(
            "--recipient",
            help="Key to seal to: of this VM only, or of the app through its key service.",
        ),
    ] = "instance",
    key_provider_id: Annotated[
        str | None,
        typer.Option(
            "--key-provider-id",
            metavar="HEX",
            help="The key service's identity, if app-compose.json has one but does not name it.",
        ),
    ] = None,
    kms_root_key: Annotated[
        str | None,
        typer.Option(
            "--kms-root-key",
            metavar="HEX",
            help="The root key of the key service, if app-compose.json has one.",
        ),
    ] = None,
    app_id: Annotated[
        str | None,
        typer.Option(
            "--app-id", metavar="HEX", help="The app's id, if app-compose.json has a key service."
        ),
    ] = None,
) -> None:
    """Write a policy that demands exactly this app, this job, this OS, and keys that nobody else has.

    A deployment service may rewrite app-compose.json. --from-job then appraises the job, shows how the text that
    its VM measured differs from the one that you reviewed, and accepts it only by its digest. It also finds out
    the job's key service, for you to accept.
    """
    from trainer import provider
    from trainer.attestation.policy import KeyServicePins
    from trainer.spec import read_job_spec

    pins = KeyServicePins(key_provider_id, kms_root_key, app_id)
    demands = provider.PolicyDemands(
        job, trust_root, collateral, measurements or [], gpu, recipient, pins
    )
    if from_job is None:
        text = _read_reviewed(app_compose, against, accept_compose, save_compose)
        policy = provider.make_strict_policy(text, demands)
    elif against is None or app_compose is not None:
        raise UsageError(
            ErrorCode.USAGE,
            "--from-job",
            expected="--against, and no --app-compose",
            found="otherwise",
        )
    else:
        record = _fetch_deployed(from_job, demands, save_compose)
        _require_accepted(record.evidence.app_compose, against, accept_compose)
        policy = _decide_keys(record, demands)
    provider.write_private_file(
        output, provider.render_policy(policy, demands, beside=output.parent).encode()
    )
    print_line(f"wrote {output}; read it before you rely on it: trainer policy explain {output}")
    for path in job:
        print_wrapped(f"{path}: {read_job_spec(path).exchange.who_may_submit}", indent=2)
    if not measurements:
        print_line(
            "it accepts no OS yet: add the measurements or the image hash that you trust under `os:`",
            err=True,
        )


def _read_reviewed(app_compose: Path | None, *options_of_from_job: object) -> str:
    """Returns the text of the file that was reviewed."""
    from trainer.provider import read_text_file

    if app_compose is None or any(option is not None for option in options_of_from_job):
        raise UsageError(
            ErrorCode.USAGE,
            "the app",
            expected="--app-compose alone, or --from-job with --against",
            found="neither" if app_compose is None else "a mixture",
        )
    return read_text_file(app_compose, "app-compose file")


def _fetch_deployed(location: str, demands: PolicyDemands, save_compose: Path | None) -> Record:
    """Returns an appraisal of everything but the key service of a job, with the text that its VM measured.

    Raises:
        VerificationError: the appraisal failed: the text may be anything.
    """
    from trainer import provider

    record = provider.appraise_deployed_app(
        provider.connect_to_job(location),
        lambda text: provider.make_undecided_policy(text, demands),
        cache=cache_directory(),
        nonces=nonces_file(),
    )
    _require_pass(record)
    if save_compose is not None:
        provider.write_private_file(save_compose, record.evidence.app_compose.encode())
    return record


def _decide_keys(record: Record, demands: PolicyDemands) -> Policy:
    """Returns the strict policy for an appraised job, after the provider has accepted its key service.

    Raises:
        UsageError: the key service is not accepted, or the app lets others than the VM read the data.
        VerificationError: the evidence does not pass under that policy.
    """
    from trainer import provider
    from trainer.attestation.result.record import reappraise

    found = provider.find_key_service(record.evidence, demands)
    given = {name: value for name, value in asdict(found).items() if value is not None}
    demands = replace(demands, pins=replace(demands.pins, **given))
    policy = provider.make_strict_policy(record.evidence.app_compose, demands)
    options = " ".join(
        f"{option} {value}" for option, value in found.named().items() if value is not None
    )
    if options and not (
        sys.stdin.isatty() and typer.confirm(f"Trust the job's key service, {options}?")
    ):
        raise UsageError(
            ErrorCode.USAGE,
            "the key service of the job",
            expected=f"{options}, if you trust it",
            found="no acceptance",
            hint="compare it with what the owner of the key service publishes: whoever controls it has the "
            "derived key and the key of the VM's disk",
        )
    _require_pass(reappraise(record, now=record.result.appraised_at, policy=policy))
    return policy


def _require_pass(record: Record) -> None:
    if record.result.status != "pass":
        from trainer.cli.check_output import print_attestation_result

        print_attestation_result(record.result)
    record.result.require_pass(record.result.appraised_at)


def _require_accepted(text: str, against: Path, accepted: str | None) -> None:
    """Requires that the provider reviewed this very text, or accepts its digest after a look at the difference.

    Raises:
        UsageError: neither; the message names the digest.
    """
    from trainer.audit import audit_compose
    from trainer.encoding import sha256_hex

    deployed, reviewed = text.encode(), read_compose(against)
    digest = f"sha256:{sha256_hex(deployed)}"
    if accepted is not None and not re.fullmatch("sha256:[0-9a-f]{64}", accepted):
        raise UsageError(
            ErrorCode.USAGE,
            "--accept-compose",
            expected="sha256: and 64 hex digits",
            found=accepted,
        )
    if accepted not in {None, digest}:
        raise UsageError(
            ErrorCode.USAGE, "the deployed app-compose.json", expected=accepted, found=digest
        )
    if deployed == reviewed:
        return
    print_review(audit_compose(deployed, against=reviewed), compared=True)
    if accepted is None and not (
        sys.stdin.isatty() and typer.confirm(f"Accept the deployed text, {digest}?")
    ):
        raise UsageError(
            ErrorCode.USAGE,
            f"the deployed app-compose.json is not {against}",
            expected=f"--accept-compose {digest}, if you accept what differs",
            found="no acceptance",
            hint="`changes` above lists what differs in meaning; --save-compose writes the deployed text",
        )


@policy_app.command("explain")
def policy_explain(policy: Annotated[Path, typer.Argument(help="policy.yaml")]) -> None:
    """Explain what a policy demands and what it leaves open."""
    from trainer.attestation.policy import explain
    from trainer.provider import read_policy

    for line in explain(read_policy(policy)):
        print_wrapped(line, indent=2)
