"""Commands of the operator: the job itself, and the development guest agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    job: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job spec.")],
    guest_agent: Annotated[
        str | None,
        typer.Option("--guest-agent", metavar="SOCKET", help="dstack's guest agent; its usual places if absent."),
    ] = None,
    spool: Annotated[
        Path | None, typer.Option("--spool", help="Exchange through files in this directory instead of HTTP.")
    ] = None,
    ciphertext: Annotated[
        Path | None,
        typer.Option(
            "--ciphertext-dir", help="Where sealed uploads and results wait; a temporary directory if absent."
        ),
    ] = None,
    workspace: Annotated[
        Path | None, typer.Option("--workspace", help="Directory on a tmpfs; /run/trainer or /dev/shm if absent.")
    ] = None,
) -> int:
    """Run one job: the container's entry point. Prints public events as JSON lines, and nothing else."""
    from trainer.job import JobOptions, run_job

    return int(run_job(JobOptions(job, guest_agent, spool, ciphertext, workspace)))


def simulate(
    socket: Annotated[Path, typer.Option("--socket", help="Unix socket to listen on.")],
    app_compose: Annotated[Path, typer.Option("--app-compose", help="app-compose.json of the simulated app.")],
    state: Annotated[Path, typer.Option("--state", help="Keeps the development root and keys.")] = Path(
        "simulator"
    ),
) -> None:
    """Development guest agent: dstack's API with quotes signed by a DEVELOPMENT root. Proves nothing."""
    from trainer.tee.simulator import BANNER, serve

    typer.echo(BANNER, err=True)
    serve(socket, state, app_compose.read_text(encoding="utf-8"))


def register(app: typer.Typer) -> None:
    """Add the operator's commands to `app`."""
    app.command("run")(run)
    app.command("simulate")(simulate)
