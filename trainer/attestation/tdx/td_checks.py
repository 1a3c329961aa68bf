"""Checks of the trust domain (TD): attributes, CPU features and owner that the TD report names.

dcap-qvl refuses a debuggable TD and some other attributes by itself. It does not judge XFAM, MROWNER,
MROWNERCONFIG or the attributes for protection keys, key locker and performance monitoring.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trainer.attestation.checks import CheckDefinition, Ledger, Submodule, TrustClaim
from trainer.attestation.policy import PlatformSection
from trainer.attestation.tdx.td_report import (
    PRODUCTION_ATTRIBUTES,
    TdReport,
    attribute_names,
    xfam_acceptable,
    xfam_limit,
)

TD_DEBUG: Final = CheckDefinition(
    "td-debug",
    title="the VM is not debuggable",
    attack="a VM whose memory and registers the host reads at will",
    claim=(Submodule.TDX, TrustClaim.RUNTIME_OPAQUE),
    hint="the operator started a debuggable VM; it must be started anew",
)
TD_ATTRIBUTES: Final = CheckDefinition(
    "td-attributes",
    title="beside DEBUG, the attributes of a production TD: SEPT_VE_DISABLE and no other",
    attack="a migratable or profiled VM whose memory the host can read",
    claim=(Submodule.TDX, TrustClaim.RUNTIME_OPAQUE),
)
TD_XFAM: Final = CheckDefinition(
    "td-xfam",
    title="only known CPU state is enabled for the VM",
    attack="CPU features that open side channels or change what the VM computes",
    claim=(Submodule.TDX, TrustClaim.CONFIGURATION),
    hint="some clouds enable CET (0x1800) or UINTR (0x4000) for every VM: `platform.xfam` can allow these two",
)
SERVICE_TD: Final = CheckDefinition(
    "service-td",
    title="no service TD is bound to the VM",
    attack="a migration or other service VM with power over this one",
    claim=(Submodule.TDX, TrustClaim.RUNTIME_OPAQUE),
)
MR_OWNER: Final = CheckDefinition(
    "mr-owner",
    title="MROWNER is zero",
    attack="a VM that was configured for an owner whom nobody reviewed",
    claim=(Submodule.TDX, TrustClaim.CONFIGURATION),
)
MR_OWNER_CONFIG: Final = CheckDefinition(
    "mr-owner-config",
    title="MROWNERCONFIG is zero",
    attack="an owner's configuration that nobody reviewed",
    claim=(Submodule.TDX, TrustClaim.CONFIGURATION),
)

TD_CHECKS: Final = (TD_DEBUG, TD_ATTRIBUTES, TD_XFAM, SERVICE_TD, MR_OWNER, MR_OWNER_CONFIG)
"""The checks of this module, in order."""


def judge_td(
    ledger: Ledger,
    report: TdReport,
    refusal: Mapping[CheckDefinition, str],
    demands: PlatformSection,
) -> None:
    """Records every check of `TD_CHECKS`.

    Args:
        ledger: receives the outcomes.
        report: the TD report.
        refusal: the check that dcap-qvl refused the quote for, with its message; fails that check here, too.
        demands: the policy's section `platform`.
    """
    # The host of a debuggable TD reads and writes its memory and registers: nothing else in the quote counts
    # then.
    attributes = report.td_attributes
    is_debuggable = bool(attributes[0] & 1)
    ledger.judge(
        TD_DEBUG,
        not is_debuggable and TD_DEBUG not in refusal,
        expected="DEBUG off",
        found="DEBUG on" if is_debuggable else "DEBUG off",
        detail=refusal.get(TD_DEBUG),
    )
    # Bit 0 is DEBUG, which td-debug has judged. Without SEPT_VE_DISABLE the host could take private pages away
    # and so raise exceptions (#VE) in the guest kernel at moments of its choice; MIGRATABLE lets the VM's state
    # leave it.
    without_debug = bytes([attributes[0] & 0xFE]) + attributes[1:]
    ledger.judge(
        TD_ATTRIBUTES,
        without_debug == PRODUCTION_ATTRIBUTES and TD_ATTRIBUTES not in refusal,
        expected=attribute_names(PRODUCTION_ATTRIBUTES),
        found=attribute_names(attributes),
        detail=refusal.get(TD_ATTRIBUTES),
    )
    # XFAM has the bits of XCR0 and IA32_XSS that the guest may use. Left out are for example processor trace
    # (bit 8) and branch records (15), which record what the guest executes.
    limit = xfam_limit(demands.xfam)
    ledger.judge(
        TD_XFAM,
        xfam_acceptable(report.xfam, limit),
        expected=f"x87 and SSE, nothing beyond {limit:#x}",
        found=f"{int.from_bytes(report.xfam, 'little'):#x}",
    )
    # A bound service TD, such as one for migration, has access to this TD's state.
    ledger.judge(
        SERVICE_TD,
        not any(report.mr_service_td or b"") and SERVICE_TD not in refusal,
        expected="none",
        found="none" if report.mr_service_td is None else report.mr_service_td,
        detail=refusal.get(SERVICE_TD),
    )
    # dstack sets no owner. A value there was chosen by the host and reviewed by nobody.
    ledger.compare(MR_OWNER, expected=bytes(len(report.mr_owner)), found=report.mr_owner)
    config = report.mr_owner_config
    ledger.compare(MR_OWNER_CONFIG, expected=bytes(len(config)), found=config)
