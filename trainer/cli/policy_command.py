"""The `policy` commands: write a policy for reviewed files, and explain a policy in words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

policy_app = typer.Typer(help="Write and read policies: what you demand of a job.", no_args_is_help=True)


@policy_app.command("init")
def policy_init(
    app_compose: Annotated[
        Path, typer.Option("--app-compose", help="app-compose.json that you reviewed; exact bytes.")
    ],
    job: Annotated[list[Path], typer.Option("--job", help="job.yaml that you reviewed; repeatable.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The policy; never overwritten.")],
    trust_root: Annotated[
        Path | None,
        typer.Option("--trust-root", help="PEM of a root other than Intel's, such as a development root."),
    ] = None,
    collateral: Annotated[
        str | None, typer.Option("--collateral", help="A file, or the URL of a PCCS; Intel's service if absent.")
    ] = None,
    measurements: Annotated[
        list[Path] | None,
        typer.Option("--measurements", help="JSON with mrtd and rtmr0-2 of an OS image you trust; repeatable."),
    ] = None,
    gpu: Annotated[
        bool, typer.Option("--gpu/--no-gpu", help="Demand confidential GPUs with fresh reports.")
    ] = True,
    recipient: Annotated[
        Literal["instance", "derived"],
        typer.Option(
            "--recipient", help="Key to seal to: of this VM only, or of the app through its key service."
        ),
    ] = "instance",
) -> None:
    """Write a policy that demands exactly this app, this job and this OS."""
    from trainer import provider

    text = provider.render_strict_policy(
        provider.ReviewedApp(app_compose, job),
        trust_root=trust_root,
        collateral=collateral,
        measurements=measurements or [],
        gpu_required=gpu,
        recipient=recipient,
        beside=output.parent,
    )
    provider.write_private_file(output, text.encode())
    typer.echo(f"wrote {output}; read it before you rely on it: trainer policy explain {output}")
    if not measurements:
        typer.echo(
            "it accepts no OS yet: add the measurements or the image hash that you trust under `os:`", err=True
        )


@policy_app.command("explain")
def policy_explain(policy: Annotated[Path, typer.Argument(help="policy.yaml")]) -> None:
    """Explain what a policy demands and what it leaves open."""
    from trainer.attestation.policy import explain
    from trainer.provider import read_policy

    for line in explain(read_policy(policy)):
        typer.echo(line)
