"""`job render`: the text that the VM measures, from job.yaml and the compose file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from trainer.cli.console import print_exactly, print_json, print_line
from trainer.cli.options import Json
from trainer.errors import ErrorCode, ExitCode, UsageError


def render_job(
    job: Annotated[Path, typer.Argument(help="job.yaml.")],
    compose: Annotated[
        Path, typer.Argument(help="docker-compose.yaml with `TRAINER_JOB: |` in the environment.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write app-compose.json here; to stdout if absent."),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check", metavar="FILE", help="Compare with this file; exit code 4 if it differs."
        ),
    ] = None,
    profile: Annotated[
        Literal["sealed", "kms"],
        typer.Option(
            "--profile",
            help="Keys that end with the VM, or those of a key management service (docs/deploy.md).",
        ),
    ] = "sealed",
    key_provider_id: Annotated[
        str | None,
        typer.Option(
            "--key-provider-id",
            metavar="HEX",
            help="For the profile kms: which key management service.",
        ),
    ] = None,
    write_compose: Annotated[
        bool, typer.Option("--write-compose", help="Put the job spec into COMPOSE itself, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put job.yaml into the compose file, and both into app-compose.json: the text that the VM measures.

    The same input gives the same bytes.
    """
    from trainer.deployment import DeploymentProfile, render_app_compose, render_compose
    from trainer.encoding import sha256_hex
    from trainer.provider import read_text_file
    from trainer.spec import parse_job_spec

    _check_render_options(output, check, profile, key_provider_id, as_json=as_json)
    job_text = read_text_file(job, "job spec")
    spec = parse_job_spec(job_text.encode())
    rendered = render_compose(read_text_file(compose, "compose file"), job_text)
    data = render_app_compose(rendered, DeploymentProfile(profile), key_provider_id=key_provider_id)
    if profile == "kms" and key_provider_id is None and check is None:
        print_line(
            "note: no VM boots with this text before --key-provider-id names the key service",
            err=True,
        )
    if check is not None:
        if read_text_file(check, "app-compose file").encode() != data:
            hint = f"write it with -o {check}"
            print_line(
                f"{check} is not what its job spec and compose file render to; hint: {hint}",
                err=True,
            )
            raise typer.Exit(int(ExitCode.VERIFICATION))
        return
    if write_compose:
        compose.write_text(rendered, encoding="utf-8")
    if output is None:
        print_exactly(data)
        return
    output.write_bytes(data)
    if as_json:
        print_json(
            {
                "app_compose": str(output),
                "compose_sha256": sha256_hex(data),
                "job_spec_sha256": spec.sha256(),
            }
        )
    else:
        print_line(
            f"{output}: compose hash sha256:{sha256_hex(data)}, job spec {spec.sha256()}", err=True
        )


def _check_render_options(
    output: Path | None,
    check: Path | None,
    profile: str,
    key_provider_id: str | None,
    *,
    as_json: bool,
) -> None:
    from trainer.attestation.dstack.key_source import IDENTITY

    if output is not None and check is not None:
        raise UsageError(
            ErrorCode.USAGE, "--output and --check", expected="one of them", found="both"
        )
    if as_json and output is None and check is None:
        raise UsageError(
            ErrorCode.USAGE,
            "--json",
            expected="--output, since stdout has one object",
            found="none",
        )
    if key_provider_id is None:
        return
    if profile != "kms":
        raise UsageError(
            ErrorCode.USAGE,
            "--key-provider-id",
            expected="--profile kms",
            found=f"--profile {profile}",
        )
    if not IDENTITY.fullmatch(key_provider_id):
        raise UsageError(
            ErrorCode.USAGE,
            "--key-provider-id",
            expected="the public key of the KMS root certificate as lower-case hex",
            found=key_provider_id,
        )
