"""The job spec as an environment variable of the container: measured with the compose file, and no file to mount.

A compose file cannot give a read-only container a config with inline content, so the text travels as an entry of
`environment`. Compose replaces variables there: a dollar sign is written `$$` in the compose file (Compose
Specification, "Interpolation").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trainer.errors import ErrorCode, UsageError
from trainer.spec.job_spec import JobSpec, parse_job_spec

JOB_VARIABLE: Final = "TRAINER_JOB"
"""Name of the variable. `trainer run` without a path reads it."""

MAX_VARIABLE_BYTES: Final = 120 * 1024
"""Most bytes of a job spec in this form. Linux passes no string above 128 KiB to a program (execve(2),
MAX_ARG_STRLEN), the variable's name and the null byte included; the rest is reserve."""


def to_compose(text: str) -> str:
    """Returns `text` as it is written in a compose file."""
    return text.replace("$", "$$")


def from_compose(text: str) -> str | None:
    """Returns what a container receives for `text` in a compose file; None if that depends on variables."""
    if "$" in text.replace("$$", ""):
        return None
    return text.replace("$$", "$")


def read_job_variable(environment: Mapping[str, str]) -> JobSpec:
    """Reads and parses the job spec in the environment of this process.

    Raises:
        UsageError: there is none, or it is not a job spec.
    """
    text = environment.get(JOB_VARIABLE)
    if text is None:
        raise UsageError(
            ErrorCode.USAGE,
            "there is no job spec",
            expected=f"the path of a job.yaml, or its text in the environment variable {JOB_VARIABLE}",
            found="neither",
        )
    return parse_job_spec(text.encode(errors="surrogateescape"))
