"""What `trainer job init --local` writes and prints beside job.yaml: for a whole job on one machine."""

from __future__ import annotations

import shlex
from pathlib import Path


def local_compose(job: Path) -> Path:
    """Returns the path of app-compose.json beside a job spec."""
    return job.with_name("app-compose.json")


def render_local_compose(job_text: str) -> bytes:
    """Returns app-compose.json with the job spec in it, as an operator renders it, without an image's digest."""
    from trainer.deployment import (
        SHIPPED_COMPOSE,
        DeploymentProfile,
        render_app_compose,
        render_compose,
    )

    return render_app_compose(render_compose(SHIPPED_COMPOSE, job_text), DeploymentProfile.SEALED)


def local_commands(job: Path, data: Path) -> tuple[str, ...]:
    """Returns the commands that follow, in their order, with what a person must know between them."""
    spec, compose, rows = (shlex.quote(str(path)) for path in (job, local_compose(job), data))
    state = "simulator"  # the default of `trainer simulate`
    trusted = f"--trust-root {state}/root.pem --collateral {state}/collateral.json"
    trusted += f" --measurements {state}/measurements.json"
    return (
        "# the simulated guest agent and the job: each goes on running, so give each a terminal",
        f"trainer simulate --socket agent.sock --app-compose {compose}",
        f"trainer run {spec} --guest-agent agent.sock --spool exchange",
        "# the provider: your key, what you demand of the job, and all the rest",
        "trainer keygen -o provider.key",
        f"trainer policy init --app-compose {compose} --job {spec} {trusted} --no-gpu -o policy.yaml",
        f"trainer submit {rows} --job-url exchange --policy policy.yaml -i provider.key -o result",
    )
