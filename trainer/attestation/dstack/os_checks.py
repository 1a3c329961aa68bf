"""Checks of the operating system: the registers that it was measured into, and the name of its image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from trainer.attestation.checks import CheckDefinition, Ledger, Submodule, TrustClaim
from trainer.attestation.dstack.event_log import Event
from trainer.attestation.dstack.os_image import image_name, is_development, recompute
from trainer.attestation.policy import OsMeasurements, Policy
from trainer.attestation.tdx.td_report import TdReport

OS_MEASUREMENTS: Final = CheckDefinition(
    "os-measurements",
    title="MRTD and RTMR0-2 are those of an OS image that the policy accepts",
    attack="a changed firmware, kernel, initrd or command line that lies about everything above it",
    claim=(Submodule.OS, TrustClaim.EXECUTABLES),
    hint="if you trust this OS image, add its measurements or image hash under `os`",
)
OS_DEVELOPMENT: Final = CheckDefinition(
    "os-development",
    title="the OS is no development image",
    attack="an OS with a login for whoever knows the published password",
    claim=(Submodule.OS, TrustClaim.CONFIGURATION),
    hint="ask the operator for a production image; if you trust this one, write `os.development: any`",
)


def judge_os(
    ledger: Ledger, vm_config: str, events: Sequence[Event], td: TdReport | None, policy: Policy
) -> None:
    """Records os-measurements and os-development.

    Args:
        ledger: receives the outcomes.
        vm_config: the host's description of the VM: memory size, image and so on. The host can write anything into
            it; a false value leads to registers that are not the quote's.
        events: the event log; its firmware events enter the recomputed registers.
        td: the TD report; None where the quote could not be read.
        policy: the reference values.
    """
    measured = td is not None and _judge_measurements(ledger, vm_config, events, td, policy)
    name = (image_name(vm_config) or "").strip() or None
    found = name or "no image name"
    # A help against mistakes, not against the host, which can show any name. So it does not matter that a host
    # shows none, if the provider accepted the measurements of the image.
    detail = "the name is the host's word; the accepted measurements are what binds"
    if policy.os == "any" or policy.os.development == "any":
        ledger.leave_open(OS_DEVELOPMENT, found=found, detail=detail)
    else:
        holds = measured if name is None else not is_development(name)
        ledger.judge(
            OS_DEVELOPMENT, holds, expected="a production image", found=found, detail=detail
        )


def _judge_measurements(
    ledger: Ledger, vm_config: str, events: Sequence[Event], td: TdReport, policy: Policy
) -> bool:
    """Records os-measurements, and returns whether the policy demands and accepts what was measured."""
    measured = OsMeasurements(
        mrtd=td.mrtd.hex(), rtmr0=td.rtmr0.hex(), rtmr1=td.rtmr1.hex(), rtmr2=td.rtmr2.hex()
    )
    found = ", ".join(f"{name} {value}" for name, value in measured.model_dump().items())
    if policy.os == "any":
        ledger.leave_open(OS_MEASUREMENTS, found=found)
        return False
    # Listed registers are compared as they are. A listed image has other registers on each VM shape, so they are
    # computed from its measurement file for the shape that `vm_config` states.
    listed, images, problem = measured in policy.os.measurements, policy.os.image_sha256, None
    if images and not listed:
        try:
            recomputed = recompute(vm_config, events, images)
            different = [name for name, value in recomputed if value != getattr(measured, name)]
            problem = (
                f"the image would measure to another {', '.join(different)}" if different else None
            )
        except ValueError as error:
            problem = str(error)
    return ledger.judge(
        OS_MEASUREMENTS,
        listed or (bool(images) and problem is None),
        expected=f"one of {len(policy.os.measurements)} listed measurements or {len(images)} listed images",
        found=found,
        detail=problem,
    )
