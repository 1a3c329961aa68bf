"""How many rows section `privacy` needs: the job refuses others, and `trainer validate` says so before."""

from __future__ import annotations

from trainer.errors import DataError, ErrorCode
from trainer.spec import GATE_OUTSIDERS, PrivacySection


def require_audit_rows(members: int, outsiders: int, privacy: PrivacySection) -> None:
    """Requires enough rows on both sides of `privacy.audit`.

    Args:
        members: number of training examples.
        outsiders: number of held-out examples that are no copies of training examples.
        privacy: the section, with `audit`.

    Raises:
        DataError: `DATASET_INVALID`.
    """
    # The standard error of the AUC is computed from variances, and a single row has none.
    needed = 2 if privacy.max_membership_auc is None else GATE_OUTSIDERS
    if members >= 2 and outsiders >= needed:
        return
    raise DataError(
        ErrorCode.DATASET_INVALID,
        "privacy.audit compares training rows with held-out ones",
        expected=f"at least 2 training rows, and {needed} held-out ones that are no copies of any",
        found=f"{members} and {outsiders}",
        hint="raise data.test_split_size, or send files for evaluation (data.eval_files)",
    )


def canaries_added(privacy: PrivacySection) -> str:
    """Returns what the provider should know of a job with canaries: they are rows that nobody sent."""
    count = privacy.canaries * privacy.canary_repetitions
    return f"{count} rows with random numbers were added to the training rows (privacy.canaries)"


def require_rows_for_delta(rows: int, delta: float) -> None:
    """Requires so many training rows that δ promises something.

    Args:
        rows: number of training rows, canaries included.
        delta: the δ of (ε, δ), `privacy.target_delta`.

    Raises:
        DataError: `PRIVACY_NOT_MET`.
    """
    # Publishing one row, chosen at random, is (0, 1/rows)-private: a δ of 1/rows promises nothing.
    if delta * rows >= 1:
        raise DataError(
            ErrorCode.PRIVACY_NOT_MET,
            "privacy.target_delta is too large for so many rows: publishing one of them whole would keep it",
            expected=f"less than 1/{rows}",
            found=delta,
            hint="lower privacy.target_delta",
        )
