"""Decides whether the weights are released, by the limits of the job spec on what they may have memorised."""

from __future__ import annotations

import math

from trainer.errors import ErrorCode, JobError
from trainer.spec import PrivacySection
from trainer.training.privacy.privacy_findings import Privacy


def refusal(section: PrivacySection, privacy: Privacy) -> JobError | None:
    """Returns the error with which the weights are withheld; None if they are released.

    A limit without a measurement withholds the weights: a missing number is NaN, and `not NaN <= limit` is true.
    """
    exposure = privacy.exposure.largest if privacy.exposure else math.nan
    if section.max_exposure is not None and not exposure <= section.max_exposure:
        return _withheld(
            "the weights remember a canary",
            "privacy.max_exposure",
            section.max_exposure,
            exposure,
            "bits",
        )
    # The upper end of the confidence interval: what few rows cannot exclude is not taken for excluded.
    area = privacy.membership.upper_bound if privacy.membership else math.nan
    if section.max_membership_auc is not None and not area <= section.max_membership_auc:
        return _withheld(
            "training rows can be told from others",
            "privacy.max_membership_auc",
            section.max_membership_auc,
            area,
            "AUC (upper end of the 95 % interval)",
        )
    return None


def _withheld(message: str, key: str, limit: float, found: float, unit: str) -> JobError:
    return JobError(
        ErrorCode.RELEASE_WITHHELD,
        f"{message}: the adapter is withheld",
        expected=f"at most {limit:g} {unit} ({key})",
        found=f"{found:.4g}",
        hint="train for fewer steps, on more rows, with more held out, or with privacy.target_epsilon; "
        "see report/report.html",
    )
