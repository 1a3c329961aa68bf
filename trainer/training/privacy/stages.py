"""What a run does for the privacy of its weights, beside training: refuse early, measure and judge at the end."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from trainer.data.examples.example import Example
from trainer.errors import ErrorCode, JobError
from trainer.spec import JobSpec, PrivacySection
from trainer.training.loop import Trainer
from trainer.training.loss import CausalLoss
from trainer.training.privacy.memorisation_audit import MemorisationAudit
from trainer.training.privacy.privacy_findings import Privacy
from trainer.training.privacy.release_gate import refusal
from trainer.training.step_policy import StepPolicy


def require_privacy_package(section: PrivacySection) -> None:
    """Refuses a differentially private run, before anything else, where Opacus is not installed.

    Raises:
        JobError: `ENGINE_UNAVAILABLE`.
    """
    if section.differential and importlib.util.find_spec("opacus") is None:
        raise JobError(
            ErrorCode.ENGINE_UNAVAILABLE,
            "differentially private training cannot run here",
            expected="the package opacus",
            found="a machine without it",
            hint="the image must be built with the extra `privacy`",
        )


def private_step_policy(
    model: Any, loss: CausalLoss, examples: Sequence[Example], spec: JobSpec
) -> StepPolicy:
    """Returns the step policy of a spec that asks for differential privacy.

    Raises:
        JobError: `PRIVACY_NOT_MET` or `PRIVACY_UNPROVEN`: the budget cannot be kept.
    """
    from trainer.training.privacy.private_step_policy import PrivateStepPolicy  # noqa: PLC0415 -- optional package

    return PrivateStepPolicy(
        model, loss, examples, spec.train, spec.privacy, max_length=spec.data.max_length
    )


def judge_privacy(
    section: PrivacySection, trainer: Trainer, audit: MemorisationAudit
) -> tuple[Privacy | None, JobError | None]:
    """Returns what is known of the privacy of the weights, and why they must be withheld, if they must.

    Raises:
        JobError: `PRIVACY_NOT_MET` or `PRIVACY_UNPROVEN`: more was spent than the budget; nothing may be kept.
    """
    if not section.enabled:
        return None, None
    privacy = Privacy(
        differential=trainer.privacy_spent(),
        membership=audit.membership(),
        exposure=audit.exposure(),
    )
    reason = refusal(section, privacy)
    return privacy.model_copy(update={"withheld": str(reason)}) if reason else privacy, reason
