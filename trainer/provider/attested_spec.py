"""The job spec of an appraised job: from a file that the provider has, or out of the measured compose text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.attestation.result.record import Record
from trainer.encoding import parse_json
from trainer.errors import ErrorCode, UsageError, VerificationError
from trainer.spec import JOB_VARIABLE, JobSpec, from_compose, parse_job_spec, read_job_spec
from trainer.strict_yaml import load_yaml_tree


def attested_job_spec(record: Record, job: Path | None) -> JobSpec | None:
    """Returns the spec of the appraised job; None if it is neither in a file nor in the compose text.

    Either has the digest that the job claims, so the compose text need not be trusted any further.

    Args:
        record: the appraisal of the job.
        job: path of its spec, if the provider has it.

    Raises:
        UsageError: the file cannot be read, or is no job spec.
        VerificationError: the appraised job runs another spec than that of the file.
    """
    claimed = record.result.job_spec_sha256
    if job is None:
        specs = _specs_in(record.evidence.app_compose)
        return next((spec for spec in specs if spec.sha256() == claimed), None)
    spec = read_job_spec(job)
    if spec.sha256() != claimed:
        raise VerificationError(
            ErrorCode.VERIFICATION_FAILED,
            f"{job} is not the spec of the appraised job",
            expected=claimed,
            found=spec.sha256(),
            hint="the policy must name the job that you mean to use: do not upload",
        )
    return spec


def _specs_in(app_compose: str) -> Iterator[JobSpec]:
    """Yields each job spec that a service of the compose text has in its environment."""
    try:
        compose = load_yaml_tree(
            str(_child(parse_json(app_compose), "docker_compose_file")), compose_features=True
        )
        services = _child(compose.plain_value(), "services")
    except ValueError:  # YamlError among them
        return
    for service in services.values() if isinstance(services, dict) else ():
        variable = _child(_child(service, "environment"), JOB_VARIABLE)
        written = from_compose(variable) if isinstance(variable, str) else None
        try:
            if written is not None:
                yield parse_job_spec(written.encode())
        except UsageError:
            continue


def _child(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None
