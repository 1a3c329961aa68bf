"""The options of `trainer run`: what the operator decides about a job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class JobOptions:
    """Holds what the operator decides: only where things are, never what the job does.

    Args:
        spec: path of job.yaml.
        guest_agent: path of dstack's socket; None looks in its usual places.
        spool: exchange files in this directory instead of serving HTTP.
        ciphertext: directory for sealed uploads, checkpoints and results under HTTP; None makes a temporary
            directory, which another start of the job will not find.
        workspace: a directory on tmpfs; None looks for one.
    """

    spec: Path
    guest_agent: str | None = None
    spool: Path | None = None
    ciphertext: Path | None = None
    workspace: Path | None = None
