"""Checks 45 to 58: what the measured OS found out about the GPUs when it booted."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.attestation.binding import gpu_evidence_sha256
from trainer.attestation.checks import CheckCode, Ledger
from trainer.attestation.event_log import Event
from trainer.attestation.evidence import DatasetClaims, GpuEvidence
from trainer.attestation.gpu import GpuBootEvent, gpu_boot_event
from trainer.attestation.policy import Policy
from trainer.encoding import sha256_hex

_BOOT_CODES = (
    CheckCode.GPU_BOOT_CLAIMS,
    CheckCode.GPU_BOOT_RESULT,
    CheckCode.GPU_BOOT_SECURE_BOOT,
    CheckCode.GPU_BOOT_DEBUG,
    CheckCode.GPU_BOOT_NONCE,
    CheckCode.GPU_BOOT_REVOCATION,
    CheckCode.GPU_BOOT_COUNT,
    CheckCode.GPU_BOOT_MODELS,
    CheckCode.GPU_BOOT_VERSIONS,
)


def judge_gpu(
    ledger: Ledger, claims: DatasetClaims, gpu: GpuEvidence, events: Sequence[Event] | None, policy: Policy
) -> None:
    """Record what the claims, the event log and the OS's own verification say of the GPUs."""
    # check 45 gpu-evidence
    ledger.compare(
        CheckCode.GPU_EVIDENCE,
        expected=claims.gpu_evidence_sha256 or "none",
        found=gpu_evidence_sha256(gpu) or "none",
    )
    for code in _BOOT_CODES:
        ledger.leave_open(code)
    if events is None:
        return
    try:
        event = gpu_boot_event(events)
    except ValueError:
        ledger.judge(CheckCode.GPU_BOOT, False, expected="a gpu-attestation event", found="one of another form")
        return
    _judge_boot(ledger, gpu.boot, event)
    _judge_event(ledger, event, policy)


def _judge_boot(ledger: Ledger, boot: str, event: GpuBootEvent | None) -> None:
    # check 46 gpu-boot
    if event is None and not boot:
        ledger.leave_open(CheckCode.GPU_BOOT, detail="neither measured nor shown")
        return
    ledger.compare(
        CheckCode.GPU_BOOT,
        expected=event.evidence_sha256 if event else "nothing, as the OS measured no GPU",
        found=sha256_hex(boot.encode()) if boot else "nothing",
    )


def _judge_event(ledger: Ledger, event: GpuBootEvent | None, policy: Policy) -> None:
    found = "no GPU" if event is None else f"{event.devices} x {event.provider}"
    if not policy.gpu.required:
        ledger.leave_open(CheckCode.GPU_REQUIRED, found=found)
        ledger.leave_open(CheckCode.GPU_CC_MODE, found=None if event is None else event.cc_mode)
    else:
        # check 47 gpu-required
        present = event is not None and event.provider == "nvidia" and event.devices > 0
        ledger.judge(CheckCode.GPU_REQUIRED, present, expected="1 or more x nvidia", found=found)
        # check 48 gpu-cc-mode
        if event is not None:
            ledger.compare(CheckCode.GPU_CC_MODE, expected="on", found=event.cc_mode)
    # check 49 gpu-devtools
    if policy.gpu.devtools == "any" or event is None:
        ledger.leave_open(CheckCode.GPU_DEVTOOLS, found=found)
    else:
        ledger.compare(CheckCode.GPU_DEVTOOLS, expected="off", found="on" if event.devtools else "off")
