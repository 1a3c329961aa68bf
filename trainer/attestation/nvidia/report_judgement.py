"""Judging one check over all fresh GPU reports, and what the reports must answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from trainer.attestation.checks import CheckDefinition, Ledger
from trainer.attestation.nvidia.gpu_endorsements import NO_ENDORSEMENTS, GpuEndorsements
from trainer.attestation.nvidia.rim import NVIDIA_RIM_ROOT_SHA256

_THREADS: Final = 8
"""A machine usually has 8 GPUs."""

Item = TypeVar("Item")
Verified = TypeVar("Verified")


@dataclass(frozen=True)
class GpuReportContext:
    """What fresh reports must answer, and what they are verified with.

    Attributes:
        nonce: the 32 bytes that the GPUs were asked with.
        now: Unix seconds.
        root_sha256: fingerprint of the root that certifies GPUs.
        endorsements: reference values of their measurements, and answers that their certificates are not revoked.
        rim_root_sha256: fingerprint of the root that certifies reference values.
    """

    nonce: bytes
    now: int
    root_sha256: str
    endorsements: GpuEndorsements = NO_ENDORSEMENTS
    rim_root_sha256: str = NVIDIA_RIM_ROOT_SHA256


def judge_each_report(
    ledger: Ledger,
    definition: CheckDefinition,
    items: Sequence[Item],
    verify: Callable[[Item], Verified],
    *,
    expected: str,
    detail: str | None = None,
    in_threads: bool = False,
) -> list[Verified] | None:
    """Records one check over all reports; it fails if `verify` refuses one of them.

    Args:
        ledger: receives the outcome.
        definition: the check.
        items: one item for each report.
        verify: raises ValueError where an item does not pass.
        expected: what would be right.
        detail: what the check does not cover.
        in_threads: verify the items side by side. Worth it for signatures: each takes half a millisecond, during
            which the interpreter lock is free.

    Returns:
        What `verify` returned for each item; None if it refused one.
    """

    def attempt(item: Item) -> Verified | ValueError:
        try:
            return verify(item)
        except ValueError as error:
            return error

    if in_threads and len(items) > 1:
        with ThreadPoolExecutor(min(_THREADS, len(items))) as pool:
            outcomes = list(pool.map(attempt, items))
    else:
        outcomes = [attempt(item) for item in items]
    problems = [
        f"report {at}: {error}"
        for at, error in enumerate(outcomes)
        if isinstance(error, ValueError)
    ]
    verified = [outcome for outcome in outcomes if not isinstance(outcome, ValueError)]
    found = "; ".join(problems) or f"{len(items)} of {len(items)} reports"
    holds = ledger.judge(definition, not problems, expected=expected, found=found, detail=detail)
    return verified if holds else None
