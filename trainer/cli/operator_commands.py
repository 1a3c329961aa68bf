"""Commands of the operator: the job itself, and the development guest agent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from trainer.cli.console import print_line
from trainer.errors import ErrorCode, UsageError, missing_package


def development_compose(key_provider: str) -> str:
    """Returns the app-compose text of the simulated VM if `--app-compose` is absent."""
    from trainer.deployment import CLEAN_START

    text: dict[str, object] = {
        "docker_compose_file": "services: {}\n",
        "manifest_version": 2,
        "name": "development",
    }
    if key_provider == "kms":
        text |= {"key_provider": "kms", "kms_enabled": True, "init_script": CLEAN_START}
    return json.dumps(text, separators=(",", ":"), sort_keys=True)


def run_job_spec(
    job: Annotated[
        Path | None,
        typer.Argument(
            metavar="[JOB.yaml]",
            help="The job spec; without it, the text in the environment variable TRAINER_JOB.",
            show_default=False,
        ),
    ] = None,
    guest_agent: Annotated[
        str | None,
        typer.Option(
            "--guest-agent",
            metavar="SOCKET",
            help="dstack's guest agent; its usual places if absent.",
        ),
    ] = None,
    spool: Annotated[
        Path | None,
        typer.Option("--spool", help="Exchange through files in this directory instead of HTTP."),
    ] = None,
    ciphertext: Annotated[
        Path | None,
        typer.Option(
            "--ciphertext-dir",
            help="Where sealed uploads and results wait; a temporary directory if absent.",
        ),
    ] = None,
    workspace: Annotated[
        Path | None,
        typer.Option(
            "--workspace", help="Directory on a tmpfs; /run/trainer or /dev/shm if absent."
        ),
    ] = None,
    restarts: Annotated[
        int,
        typer.Option(
            "--restarts",
            min=0,
            max=100,
            help="Start the job again so many times if one of its processes is lost; needs --ciphertext-dir.",
        ),
    ] = 0,
) -> None:
    """Run one job: the container's entry point. Prints public events as JSON lines, and nothing else."""
    try:
        from trainer.job.hub_token import take_hub_token
        from trainer.job.job_options import JobOptions
        from trainer.job.restarts import run_with_restarts
        from trainer.job.store_variables import take_store_variables
        from trainer.job.supervisor import run_job
    except ModuleNotFoundError as error:
        raise missing_package(error.name, "job", "the job, unlike the provider's tool,") from error

    token, store = take_hub_token(os.environ), take_store_variables(os.environ)
    options = JobOptions(job, guest_agent, spool, ciphertext, workspace, token, store)
    # What is wrong with the spec is said once, before anything is started.
    options.read_store(options.read_spec(os.environ)[0])
    code = (
        run_with_restarts(partial(run_job, options), restarts)
        if restarts
        else run_job(options).code
    )
    raise typer.Exit(int(code))


@contextmanager
def _require_simulator() -> Iterator[None]:
    """Turns a missing `trainer.simulator` into a usage error: the container image does not contain it."""
    try:
        yield
    except ModuleNotFoundError as error:
        # Any other missing module is a fault of the installation, which must not look like a missing simulator.
        if error.name != "trainer.simulator":
            raise
        raise UsageError(
            ErrorCode.USAGE,
            "this installation has no simulator",
            hint="the simulator is part of the package outside the image: install confidential-trainer for it",
        ) from error


def _list_faults(requested: bool) -> None:
    if not requested:
        return
    with _require_simulator():
        from trainer.simulator import FAULTS

    for fault in FAULTS.values():
        print_line(f"{fault.name:<44}  {fault.code:<22}  {fault.description}")
    raise typer.Exit


def simulate_guest_agent(
    socket: Annotated[Path, typer.Option("--socket", help="Unix socket to listen on.")],
    state: Annotated[
        Path,
        typer.Option(
            "--state", help="Keeps the development root and keys; gets the files a verifier needs."
        ),
    ] = Path("simulator"),
    app_compose: Annotated[
        Path | None,
        typer.Option("--app-compose", help="app-compose.json of the simulated app, exact bytes."),
    ] = None,
    key_provider: Annotated[
        Literal["none", "kms"] | None,
        typer.Option(
            "--key-provider",
            help="The VM's keys: made at boot (none, the default), or of a simulated key service (kms), whose "
            "pins are in key-service.json. With --app-compose, that file decides.",
        ),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            "--fault", metavar="NAME", help="Lie in one field, to test a verifier; may be repeated."
        ),
    ] = None,
    list_faults: Annotated[
        bool,
        typer.Option(
            "--list-faults",
            is_eager=True,
            callback=_list_faults,
            help="Print each fault with the check that answers it, and end.",
        ),
    ] = False,
) -> None:
    """Development guest agent: dstack's API with quotes signed by a DEVELOPMENT root. It protects nothing."""
    with _require_simulator():
        from trainer.simulator import BANNER, VmOptions, find_faults, serve

    del list_faults  # ended in its callback
    faults = find_faults(fault or ())
    if app_compose is not None and key_provider is not None:
        raise UsageError(
            ErrorCode.USAGE,
            "--key-provider",
            expected="no --app-compose beside it",
            found=str(app_compose),
            hint="key_provider in the app-compose file decides: `trainer job render --profile` writes it",
        )
    compose = (
        app_compose.read_bytes().decode()
        if app_compose
        else development_compose(key_provider or "none")
    )
    print_line(BANNER, err=True)
    for lie in faults:
        print_line(
            f"LYING: {lie.name}: {lie.description} (answered by {', '.join(lie.codes)})", err=True
        )
    serve(
        socket,
        state,
        compose,
        options=VmOptions(faults=faults),
        started=lambda _vm: print_line(f"listening on {socket}; state in {state}", err=True),
    )
