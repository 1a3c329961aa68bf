"""What a joint job must not be asked for: every provider gets its result, which must tell none of others' rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.spec.job_spec import JobSpec


def joint_refusals(spec: JobSpec) -> Iterator[str]:
    """Yields one message for each key that is incompatible with `exchange.joint`."""
    if spec.exchange.joint:
        yield from (
            f"{key}: {why} (exchange.joint is set)"
            for key, why, breaks in _conditions(spec)
            if breaks
        )


def _conditions(spec: JobSpec) -> Iterator[tuple[str, str, bool]]:
    """Yields key, requirement with its reason, and whether the spec violates it."""
    yield (
        "train.max_steps",
        "must be above 0: the steps of an epoch would tell how many rows the others have",
        spec.train.max_steps <= 0,
    )
    yield (
        "data.on_overlong",
        "must be error: rows that are dropped or cut are counted, and counts are not shared",
        spec.data.on_overlong.value != "error",
    )
    yield "output.samples", "must be 0: samples quote rows", spec.output.samples > 0
    yield "output.include_logs", "must be false: logs name files and rows", spec.output.include_logs
    yield (
        "evaluation.metrics",
        "must be left out: parts of the held-out rows tell how many there are",
        bool(spec.evaluation.metrics),
    )
    yield (
        "privacy",
        "must be left out: ε follows from the number of rows",
        spec.privacy.enabled,
    )
    yield (
        "lora.start_from",
        "must be left out: there is no dataset of all to send an earlier adapter in",
        spec.lora.start_from is not None,
    )
