"""The options of `trainer run`: what the operator decides about a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainer.errors import ErrorCode, UsageError
from trainer.exchange.object_store import read_store_variables
from trainer.spec import JOB_VARIABLE, JobSpec, read_job_spec, read_job_variable


@dataclass(frozen=True)
class JobOptions:
    """Holds what the operator decides: only where things are, never what the job does.

    Args:
        spec: path of job.yaml; None takes the text of the environment variable `TRAINER_JOB`.
        guest_agent: path of dstack's socket; None looks in its usual places.
        spool: exchange files in this directory instead of serving HTTP.
        ciphertext: directory for sealed uploads, checkpoints and results under HTTP; None makes a temporary
            directory, which another start of the job will not find.
        workspace: a directory on tmpfs; None looks for one.
        hub_token: access to models at the hub, for the fetch process alone.
        store_variables: how an object store is reached, for the sync process alone.
    """

    spec: Path | None
    guest_agent: str | None = None
    spool: Path | None = None
    ciphertext: Path | None = None
    workspace: Path | None = None
    hub_token: str | None = field(default=None, repr=False)
    store_variables: Mapping[str, str] = field(default_factory=dict, repr=False)

    def read_spec(self, environment: Mapping[str, str]) -> tuple[JobSpec, Path]:
        """Returns the job spec, and the directory that a relative path of a base model in it is relative to.

        Raises:
            UsageError: the spec is missing, given twice, or not valid.
        """
        if self.spec is None:
            return read_job_variable(environment), Path("/")
        if JOB_VARIABLE in environment:
            # Which of the two was measured, and so reviewed, is not for this process to guess.
            raise UsageError(
                ErrorCode.USAGE,
                "the job spec is given twice",
                expected=f"the path of a job.yaml or the environment variable {JOB_VARIABLE}",
                found=f"{self.spec} and {JOB_VARIABLE}",
                hint=f"leave the path out, or unset {JOB_VARIABLE}",
            )
        return read_job_spec(self.spec), self.spec.parent

    def read_store(self, spec: JobSpec) -> Mapping[str, str]:
        """Returns the variables for the store that a job spec names; empty if it names none.

        Raises:
            UsageError: the job has a spool as well; a variable is missing, or has not its form (`store-refused`).
        """
        if spec.exchange.store is None:
            return {}
        if self.spool is not None:
            raise UsageError(
                ErrorCode.USAGE,
                "the exchange is given twice",
                expected="--spool or exchange.store in the job spec",
                found=f"{self.spool} and {spec.exchange.store}",
            )
        return read_store_variables(self.store_variables)
