"""Checks the privacy that a grant demands: against the job spec before training, against the result after it.

Both are needed. The spec states a target, which an error in the accountant or the worker could miss; the reported
loss is known only after the dataset was used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import JsonValue

from trainer.errors import ErrorCode, JobError
from trainer.job.end_record import PrivacySpent
from trainer.receipt.statement import reported_privacy
from trainer.sealing.bundle import Grant, PrivacyDemand
from trainer.spec import JobSpec


def require_privacy_promised(
    grant: Grant, spec: JobSpec, earlier: PrivacySpent | None = None
) -> None:
    """Checks, before training, that the job spec promises the (ε, δ) that the grant demands.

    Args:
        grant: the provider's.
        spec: the job spec.
        earlier: what earlier runs over this dataset have spent: the budget is that of the grant, not of a run.

    Raises:
        JobError: `PRIVACY_NOT_MET`: the spec trains without noise, or with a larger ε or δ.
    """
    if grant.require is None:
        return
    demand, section = grant.require.privacy, spec.privacy
    if not section.differential:
        raise _not_met(demand, "training without noise")
    # ε bounds how much one row changes the log-probability of any outcome, but for events of probability δ.
    # A spec may fix the noise instead of ε: the ε that it gives is then checked after training alone.
    spent = (earlier.epsilon, earlier.delta) if earlier else (0.0, 0.0)
    after = f", after {earlier.runs} runs that spent ε = {spent[0]:g}" if earlier else ""
    if (
        section.target_epsilon is not None
        and spent[0] + section.target_epsilon > demand.max_epsilon
    ):
        raise _not_met(demand, f"privacy.target_epsilon {section.target_epsilon:g}{after}")
    if section.target_delta is None or spent[1] + section.target_delta > demand.max_delta:
        raise _not_met(demand, f"privacy.target_delta {section.target_delta}{after}")


def spent_by(
    summary: Mapping[str, JsonValue], earlier: PrivacySpent | None = None
) -> PrivacySpent | None:
    """Returns what a run and those before it have spent; None if the worker reported no differential privacy."""
    epsilon, delta = reported_privacy(summary.get("privacy"))
    if epsilon is None or delta is None or not (math.isfinite(epsilon) and math.isfinite(delta)):
        return None
    spent = PrivacySpent(runs=1, epsilon=max(0.0, epsilon), delta=max(0.0, delta))
    return spent + earlier if earlier else spent


def require_privacy_met(grant: Grant, spent: PrivacySpent | None) -> None:
    """Checks, after training, that what was spent is within what the grant demands.

    Raises:
        JobError: `PRIVACY_NOT_MET`: ε or δ is larger, or the worker reported none.
    """
    if grant.require is None:
        return
    demand = grant.require.privacy
    if spent is None:
        raise _not_met(demand, "none that was reported")
    if spent.epsilon > demand.max_epsilon or spent.delta > demand.max_delta:
        raise _not_met(
            demand, f"ε = {spent.epsilon:g} at δ = {spent.delta:g} over {spent.runs} runs"
        )


def _not_met(demand: PrivacyDemand, found: str) -> JobError:
    return JobError(
        ErrorCode.PRIVACY_NOT_MET,
        "the grant demands differentially private weights",
        expected=f"ε of at most {demand.max_epsilon:g} at a δ of at most {demand.max_delta:g}",
        found=found,
        hint="choose a job whose privacy section promises that, or seal the dataset without the demand",
    )
