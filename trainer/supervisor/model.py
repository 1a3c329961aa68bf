"""Bringing the base model in: a short-lived child has the network, this process only reads its verdict."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from trainer.exchange.base_model import fetch_model_in_child
from trainer.spec import JobSpec
from trainer.supervisor import children
from trainer.supervisor.workspace import Workspace

FETCH_SECONDS: Final = 6 * 3600

_HUB_VARIABLES: Final = ("HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE")
"""Where the operator's mirror is. It decides nothing: what comes from there is checked by digest."""


def fetch_base_model(spec: JobSpec, spec_folder: Path, workspace: Workspace) -> None:
    """Fill `workspace.model` with exactly the files that the spec lists, each with the digest it names.

    Args:
        spec: the job spec.
        spec_folder: what a relative `model_name_or_path` is relative to.
        workspace: the job's workspace.

    Raises:
        JobError: `model-digest-mismatch` or `model-invalid`.
        UnavailableError: the source does not answer.
    """
    hub = {name: os.environ[name] for name in _HUB_VARIABLES if name in os.environ}
    with workspace.private_log.open("ab") as log:
        fetch_model_in_child(
            spec.model,
            spec_folder.resolve(),
            workspace.model,
            timeout=FETCH_SECONDS,
            environment=children.clean_environment(workspace.scratch, hub),
            log=log,
        )
