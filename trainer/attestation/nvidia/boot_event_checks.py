"""Checks of GPUs by the measured OS's event: which evidence it saw, how many GPUs, and in which mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from trainer.attestation.checks import CheckDefinition, Ledger, Submodule, TrustClaim
from trainer.attestation.claims.binding import gpu_evidence_sha256
from trainer.attestation.dstack.event_log import Event
from trainer.attestation.evidence import DatasetClaims, GpuEvidence
from trainer.attestation.nvidia.boot_checks import judge_boot_claims, leave_boot_claims
from trainer.attestation.nvidia.boot_event import GpuBootEvent, gpu_boot_event
from trainer.attestation.policy import GpuSection, Policy
from trainer.encoding import sha256_hex

GPU_EVIDENCE: Final = CheckDefinition(
    "gpu-evidence",
    title="the GPU evidence is the one that the claims name",
    attack="GPU evidence of another machine put beside genuine claims",
    claim=(Submodule.GPU, TrustClaim.HARDWARE),
)
GPU_BOOT: Final = CheckDefinition(
    "gpu-boot",
    title="the boot GPU evidence is the one that the OS measured",
    attack="GPU evidence that the measured OS never saw",
    claim=(Submodule.GPU, TrustClaim.HARDWARE),
)
GPU_REQUIRED: Final = CheckDefinition(
    "gpu-required",
    title="the OS attested NVIDIA GPUs",
    attack="training on something that only calls itself a GPU",
    claim=(Submodule.GPU, TrustClaim.HARDWARE),
    hint="ask the operator for a VM with confidential GPUs, or set `gpu.required` to false",
)
GPU_CC_MODE: Final = CheckDefinition(
    "gpu-cc-mode",
    title="every GPU runs in confidential mode",
    attack="training on a GPU whose memory the host can read",
    claim=(Submodule.GPU, TrustClaim.RUNTIME_OPAQUE),
)
GPU_DEVTOOLS: Final = CheckDefinition(
    "gpu-devtools",
    title="no GPU is in devtools mode",
    attack="a GPU whose memory opens to developer tools",
    claim=(Submodule.GPU, TrustClaim.RUNTIME_OPAQUE),
    hint="the GPU must be set to production mode",
)


def judge_gpu_boot(
    ledger: Ledger,
    claims: DatasetClaims,
    gpu: GpuEvidence,
    events: Sequence[Event] | None,
    policy: Policy,
) -> None:
    """Records the checks of this module and of `boot_checks`.

    Args:
        ledger: receives the outcomes.
        claims: the job's claims, which name the GPU evidence by its digest.
        gpu: the GPU evidence.
        events: the event log; None where it could not be read.
        policy: the reference values.
    """
    # Two bindings: the claims name the digest of all GPU evidence, and the OS measured the digest of the boot
    # text. The second alone shows that the text was there before any application ran.
    expected, found = claims.gpu_evidence_sha256 or "none", gpu_evidence_sha256(gpu) or "none"
    ledger.compare(GPU_EVIDENCE, expected=expected, found=found)
    if events is None:
        leave_boot_claims(ledger, policy.gpu, "the event log cannot be read")
        return
    try:
        event, is_readable = gpu_boot_event(events), True
    except ValueError:
        event, is_readable = None, False
    measured = _judge_text(ledger, gpu.boot, event, is_readable)
    if not is_readable:
        leave_boot_claims(ledger, policy.gpu, "the gpu-attestation event cannot be read")
        return
    _judge_event(ledger, event, policy.gpu)
    # The boot claims are unsigned: without the OS's measurement of their text nobody vouches for them.
    if event is None:
        leave_boot_claims(ledger, policy.gpu, "the OS measured no GPU")
    elif not measured:
        leave_boot_claims(
            ledger, policy.gpu, "the boot evidence is not the one that the OS measured"
        )
    else:
        judge_boot_claims(ledger, gpu.boot, event, policy.gpu)


def _judge_text(ledger: Ledger, boot: str, event: GpuBootEvent | None, is_readable: bool) -> bool:
    """Records gpu-boot.

    Returns:
        Whether the text shown is the one whose digest the OS measured.
    """
    if not is_readable:
        return ledger.judge(
            GPU_BOOT, False, expected="a gpu-attestation event", found="one of another form"
        )
    if event is None and not boot:
        ledger.leave_open(GPU_BOOT, detail="neither measured nor shown")
        return False
    return ledger.compare(
        GPU_BOOT,
        expected=event.evidence_sha256 if event else "nothing, as the OS measured no GPU",
        found=sha256_hex(boot.encode()) if boot else "nothing",
    )


def _judge_event(ledger: Ledger, event: GpuBootEvent | None, demands: GpuSection) -> None:
    """Records gpu-required, gpu-cc-mode and gpu-devtools."""
    found = "no GPU" if event is None else f"{event.devices} x {event.provider}"
    if demands.required:
        present = event is not None and event.provider == "nvidia" and event.devices > 0
        ledger.judge(GPU_REQUIRED, present, expected="1 or more x nvidia", found=found)
        if event is not None:
            ledger.compare(GPU_CC_MODE, expected="on", found=event.cc_mode)
    else:
        ledger.leave_open(GPU_REQUIRED, found=found)
        ledger.leave_open(GPU_CC_MODE, found=None if event is None else event.cc_mode)
    if demands.devtools == "any" or event is None:
        ledger.leave_open(GPU_DEVTOOLS, found=found)
    else:
        ledger.compare(GPU_DEVTOOLS, expected="off", found="on" if event.devtools else "off")
