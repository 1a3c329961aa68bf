"""Checks of the platform's trusted computing base (TCB): its status, its advisories, and the TDX module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trainer.attestation.checks import CheckDefinition, Ledger, Submodule, TrustClaim
from trainer.attestation.policy import TcbSection
from trainer.attestation.tdx.collateral import Collateral, module_identity
from trainer.attestation.tdx.quote_verification import VerifiedQuote, utc_date
from trainer.attestation.tdx.td_report import TdReport

_DAY_SECONDS: Final = 86400
_OUT_OF_DATE: Final = ("OutOfDate", "OutOfDateConfigurationNeeded")

TCB_STATUS: Final = CheckDefinition(
    "tcb-status",
    title="the platform's TCB status is one that the policy accepts",
    attack="a platform with known, unpatched holes",
    claim=(Submodule.TDX, TrustClaim.HARDWARE),
    hint="ask the operator to update the platform, or list the status in `tcb.accepted_statuses`",
)
TCB_GRACE: Final = CheckDefinition(
    "tcb-grace",
    title="an accepted out-of-date state became so no longer ago than the policy's grace",
    attack="a platform that was left unpatched for longer than agreed",
    claim=(Submodule.TDX, TrustClaim.HARDWARE),
    hint="ask the operator to update the platform, or raise `tcb.grace_days`",
)
TCB_ADVISORIES: Final = CheckDefinition(
    "tcb-advisories",
    title="no advisory that the policy refuses applies to the platform",
    attack="a platform open to one particular published attack",
    claim=(Submodule.TDX, TrustClaim.HARDWARE),
)
TCB_EVALUATION_NUMBER: Final = CheckDefinition(
    "tcb-evaluation-number",
    title="the collateral's evaluation data number reaches the policy's minimum",
    attack="genuine collateral of an early evaluation, from before an advisory",
    claim=(Submodule.TDX, TrustClaim.HARDWARE),
    hint="fetch newer collateral",
)
TDX_MODULE: Final = CheckDefinition(
    "tdx-module",
    title="signer, attributes and version of the TDX module are ones that the collateral names",
    attack="a debug or foreign TDX module below the VM",
    claim=(Submodule.TDX, TrustClaim.HARDWARE),
)
MR_SEAM: Final = CheckDefinition(
    "mr-seam",
    title="MRSEAM is one that the policy lists",
    attack="a TDX module of Intel's that the provider does not want",
    claim=(Submodule.TDX, TrustClaim.HARDWARE),
)

TCB_CHECKS: Final = (
    TCB_STATUS,
    TCB_GRACE,
    TCB_ADVISORIES,
    TCB_EVALUATION_NUMBER,
    TDX_MODULE,
    MR_SEAM,
)
"""The checks of this module, in order."""


def judge_tcb(
    ledger: Ledger,
    verified: VerifiedQuote | None,
    refusal: Mapping[CheckDefinition, str],
    demands: TcbSection,
    now: int,
) -> None:
    """Records tcb-status, tcb-grace, tcb-advisories and tcb-evaluation-number.

    Args:
        ledger: receives the outcomes; gets none where the quote did not verify for another reason.
        verified: the verified quote, or None.
        refusal: the check that dcap-qvl refused the quote for, with its message.
        demands: the policy's section `tcb`.
        now: Unix seconds.
    """
    if verified is None:
        if TCB_STATUS in refusal:  # dcap-qvl itself refuses `Revoked`, whatever a policy accepts
            expected = "a platform that is not revoked"
            ledger.judge(TCB_STATUS, False, expected=expected, found=refusal[TCB_STATUS])
        return
    accepted, status = demands.accepted_statuses, verified.status
    ledger.judge(TCB_STATUS, status in accepted, expected=" or ".join(accepted), found=status)
    # A level became out of date some time after its date, so a grace that counts from the date is the strict
    # reading. An out-of-date status that no level explains has no date and is never within the grace.
    dates = [level.date for level in verified.levels if level.status in _OUT_OF_DATE]
    is_within_grace = bool(dates) and min(dates) + demands.grace_days * _DAY_SECONDS >= now
    ledger.judge(
        TCB_GRACE,
        status not in accepted or not status.startswith("OutOfDate") or is_within_grace,
        expected=f"if out of date, by at most {demands.grace_days} days",
        found=", ".join(f"{level.status} of {utc_date(level.date)}" for level in verified.levels),
    )
    refused = sorted({advisory.upper() for advisory in demands.refused_advisories})
    present = ", ".join(verified.advisories) or "none"
    if refused:
        holds = not any(advisory.upper() in refused for advisory in verified.advisories)
        ledger.judge(TCB_ADVISORIES, holds, expected=f"none of {', '.join(refused)}", found=present)
    else:
        ledger.leave_open(TCB_ADVISORIES, found=present)
    minimum, number = demands.min_evaluation_number, verified.evaluation_number
    if minimum == "any":
        ledger.leave_open(TCB_EVALUATION_NUMBER, found=number)
    else:
        expected = f"at least {minimum}"
        ledger.judge(TCB_EVALUATION_NUMBER, number >= minimum, expected=expected, found=number)


def judge_module(
    ledger: Ledger,
    td: TdReport,
    documents: Collateral | None,
    refusal: Mapping[CheckDefinition, str],
    demands: TcbSection,
) -> None:
    """Records mr-seam, and tdx-module: signer and attributes of the TDX module, as the signed TCB info names them.

    Args:
        ledger: receives the outcomes; none of tdx-module where the TCB info did not verify for another reason.
        td: the TD report, which carries the module's measurement, signer and attributes.
        documents: the collateral; None where it was not verified.
        refusal: the check that dcap-qvl refused the quote for, with its message.
        demands: the policy's section `tcb`.
    """
    # The TCB info names no measurement of the module, so the policy lists those that it accepts, if any.
    listed, measured = demands.mr_seam, td.mr_seam.hex()
    if listed == "any":
        ledger.leave_open(MR_SEAM, found=measured)
    else:
        ledger.judge(MR_SEAM, measured in listed, expected=" or ".join(listed), found=measured)
    if documents:
        # MRSIGNERSEAM is zero for a module that Intel signed; any other signer makes a foreign module.
        identity = module_identity(documents.tcb_info, td) or {}
        mask = int(identity.get("attributesMask", "FFFFFFFFFFFFFFFF"), 16)
        signer, attributes = (
            identity.get("mrsigner", "no such module"),
            identity.get("attributes", ""),
        )
        attribute_bits = int(td.seam_attributes.hex(), 16)
        # Bits outside the mask are not ones that Intel described: they must be zero as well.
        holds = (
            td.mr_signer_seam.hex() == signer.lower()
            and attribute_bits & ~mask == 0
            and attribute_bits & mask == int(attributes or "0", 16) & mask
        )
        expected = f"signer {signer}, attributes {attributes}"
        found = f"signer {td.mr_signer_seam.hex()}, attributes {td.seam_attributes.hex()}"
        detail = f"version {td.tee_tcb_svn[1]}.{td.tee_tcb_svn[0]}, MRSEAM {td.mr_seam.hex()}"
    elif TDX_MODULE in refusal:
        holds, expected, found, detail = (
            False,
            "a TDX module that the TCB info names",
            refusal[TDX_MODULE],
            None,
        )
    else:
        return
    ledger.judge(TDX_MODULE, holds, expected=expected, found=found, detail=detail)
