"""What a grant demands of the job: looked at before training, and again before anything is handed out."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from trainer.errors import ErrorCode, JobError
from trainer.sealing.bundle import Grant, PrivacyDemand
from trainer.spec import JobSpec


def require_promised(grant: Grant, spec: JobSpec) -> None:
    """Demand, before training, that the job spec promises what the grant demands.

    Raises:
        JobError: `PRIVACY_NOT_MET`.
    """
    if grant.require is None:
        return
    demand, section = grant.require.privacy, spec.privacy
    if not section.differential:
        raise _not_met(demand, "training without noise")
    if section.target_epsilon is not None and section.target_epsilon > demand.max_epsilon:
        raise _not_met(demand, f"privacy.target_epsilon {section.target_epsilon:g}")
    if section.target_delta is None or section.target_delta > demand.max_delta:
        raise _not_met(demand, f"privacy.target_delta {section.target_delta}")


def require_kept(grant: Grant, summary: Mapping[str, JsonValue]) -> None:
    """Demand, after training, that what was spent is within what the grant demands.

    Raises:
        JobError: `PRIVACY_NOT_MET`: more was spent, or the worker did not say how much.
    """
    if grant.require is None:
        return
    demand, (epsilon, delta) = grant.require.privacy, spent(summary.get("privacy"))
    if epsilon is None or delta is None or not (epsilon <= demand.max_epsilon and delta <= demand.max_delta):
        raise _not_met(demand, f"ε = {epsilon} at δ = {delta}")


def spent(privacy: JsonValue) -> tuple[float | None, float | None]:
    """ε and δ in what a worker or a receipt says of privacy; None where it says nothing of it."""
    found = privacy.get("differential") if isinstance(privacy, dict) else None
    epsilon, delta = (found.get("epsilon"), found.get("delta")) if isinstance(found, dict) else (None, None)
    return _number(epsilon), _number(delta)


def _number(value: JsonValue) -> float | None:
    """JSON has one kind of number: 3.0 may come back as 3. Truth values are none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _not_met(demand: PrivacyDemand, found: str) -> JobError:
    return JobError(
        ErrorCode.PRIVACY_NOT_MET,
        "the grant demands differentially private weights",
        expected=f"ε of at most {demand.max_epsilon:g} at a δ of at most {demand.max_delta:g}",
        found=found,
        hint="choose a job whose privacy section promises that, or seal the dataset without the demand",
    )
