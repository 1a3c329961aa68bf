"""Options that several commands share, and the paths of the tool's own files on the provider's machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line of stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, only results and errors.")]
JOB_LOCATION: Final = "https:// URL of the job, or its spool directory."
"""Where a job is reached: a location of one of the carriers in `provider/transport/carrier_registry.py`."""

Source = Annotated[str, typer.Argument(metavar="URL", help=JOB_LOCATION)]
JobUrl = Annotated[str, typer.Option("--job-url", help=JOB_LOCATION)]
PolicyFile = Annotated[Path, typer.Option("--policy", help="What you demand of the job (policy.yaml).")]
IdentityFile = Annotated[Path, typer.Option("--identity", "-i", help="Your identity, from `trainer keygen`.")]
RecordFile = Annotated[
    Path, typer.Option("--attestation", metavar="result.json", help="What `trainer verify -o` wrote.")
]
JobFile = Annotated[
    Path | None,
    typer.Option("--job", help="The job's spec: needed where job.yaml names columns or a format for the data."),
]
MaxEpsilon = Annotated[
    float | None,
    typer.Option("--max-epsilon", help="Accept only differentially private weights, with at most this ε."),
]
MaxDelta = Annotated[float | None, typer.Option("--max-delta", help="Goes with --max-epsilon: at most this δ.")]
GrantFile = Annotated[
    Path | None, typer.Option("--grant", help="The .grant.json that `trainer seal` wrote beside the sealed file.")
]


def cache_directory() -> Path:
    """Returns the directory of cached collateral: `$XDG_CACHE_HOME/confidential-trainer`."""
    # XDG Base Directory Specification: a variable that is empty counts as not set.
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "confidential-trainer"


def nonces_file() -> Path:
    """Returns the file of spent nonces: `$XDG_STATE_HOME/confidential-trainer/nonces`."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    return state / "confidential-trainer" / "nonces"
