"""Bringing the base model in: a short-lived child has the network, this process only reads its verdict."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from trainer.fetch.base_model import Fetch, FetchOrder
from trainer.job import child_process as children
from trainer.job.workspace import Workspace
from trainer.sandbox.plan import SandboxPlan
from trainer.spec import JobSpec

FETCH_SECONDS: Final = 6 * 3600

_HUB_VARIABLES: Final = ("HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE")
"""Where the operator's mirror is. It decides nothing: what comes from there is checked by digest."""


def start_fetch(spec: JobSpec, spec_folder: Path, workspace: Workspace, plan: SandboxPlan) -> Fetch:
    """Start what fills `workspace.model` with exactly the files that the spec lists, each with its digest.

    Args:
        spec: the job spec.
        spec_folder: what a relative `model_name_or_path` is relative to.
        workspace: the job's workspace.
        plan: what the child is confined to.
    """
    hub = {name: os.environ[name] for name in _HUB_VARIABLES if name in os.environ}
    order = FetchOrder(model=spec.model, base_dir=str(spec_folder.resolve()), into=str(workspace.model), plan=plan)
    with workspace.private_log.open("ab") as log:
        return Fetch(order, environment=children.clean_environment(workspace.model, hub), log=log)
