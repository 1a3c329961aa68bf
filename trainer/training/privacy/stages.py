"""What a run does for privacy, as `trainer.training.run` calls it, stage by stage."""

from __future__ import annotations

import importlib.util
from typing import Any

from trainer.data.examples.example_set import Dataset
from trainer.errors import ErrorCode, JobError
from trainer.spec import JobSpec, PrivacySection
from trainer.training.interruption import Interrupts
from trainer.training.loop import Report, Trainer
from trainer.training.loss import CausalLoss
from trainer.training.privacy.memorisation_audit import MemorisationAudit
from trainer.training.privacy.privacy_findings import DifferentialPrivacy, Privacy
from trainer.training.privacy.release_gate import refusal


def require_engine(section: PrivacySection) -> None:
    """Refuse a private run, before anything is done, where the package for it is missing.

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


def private_training(
    model: Any, loss: CausalLoss, data: Dataset, spec: JobSpec, *, report: Report, interrupts: Interrupts
) -> Trainer:
    """The training of a spec that asks for differential privacy.

    Raises:
        JobError: `PRIVACY_NOT_MET`, `PRIVACY_UNPROVEN`: the budget cannot be kept.
    """
    from trainer.training.privacy.dp_training import PrivateTraining  # noqa: PLC0415 -- needs an optional dependency

    return PrivateTraining(model, loss, data, spec.train, spec.privacy, report=report, interrupts=interrupts)


def conclude(
    section: PrivacySection, training: Trainer, audit: MemorisationAudit
) -> tuple[Privacy | None, JobError | None]:
    """What is known of the weights' privacy, and why they must be withheld, if they must.

    Raises:
        JobError: `PRIVACY_NOT_MET`, `PRIVACY_UNPROVEN`: more was spent than the budget; nothing may be kept.
    """
    if not section.asked:
        return None, None
    found = Privacy(differential=_spent(training), membership=audit.membership(), exposure=audit.exposure())
    reason = refusal(section, found)
    return found.model_copy(update={"withheld": str(reason)}) if reason else found, reason


def _spent(training: Trainer) -> DifferentialPrivacy | None:
    findings = getattr(training, "findings", None)
    return findings() if findings is not None else None
