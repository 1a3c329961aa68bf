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

TCB_CHECKS: Final = (TCB_STATUS, TCB_GRACE, TCB_ADVISORIES, TCB_EVALUATION_NUMBER, TDX_MODULE, MR_SEAM)
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
    _judge_status(ledger, verified, refusal, demands)
    if verified is None:
        return
    dated = ", ".join(f"{level.status} of {utc_date(level.date)}" for level in verified.levels)
    ledger.judge(
        TCB_GRACE,
        verified.status not in demands.accepted_statuses or _is_within_grace(verified, demands.grace_days, now),
        expected=f"if out of date, by at most {demands.grace_days} days",
        found=dated,
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


def _judge_status(
    ledger: Ledger, verified: VerifiedQuote | None, refusal: Mapping[CheckDefinition, str], demands: TcbSection
) -> None:
    accepted = demands.accepted_statuses
    if verified:
        holds, expected, found = verified.status in accepted, " or ".join(accepted), verified.status
    elif TCB_STATUS in refusal:  # dcap-qvl itself refuses `Revoked`, whatever a policy accepts
        holds, expected, found = False, "a platform that is not revoked", refusal[TCB_STATUS]
    else:
        return
    ledger.judge(TCB_STATUS, holds, expected=expected, found=found)


def _is_within_grace(verified: VerifiedQuote, grace_days: int, now: int) -> bool:
    """Returns whether every out-of-date level became so at most `grace_days` ago.

    An out-of-date status that no level explains has no date, so it is never within the grace.
    """
    if not verified.status.startswith("OutOfDate"):
        return True
    dates = [level.date for level in verified.levels if level.out_of_date]
    return bool(dates) and min(dates) + grace_days * _DAY_SECONDS >= now


def judge_module(
    ledger: Ledger, td: TdReport, documents: Collateral | None, refusal: Mapping[CheckDefinition, str]
) -> None:
    """Records tdx-module: signer and attributes of the TDX module, as the signed TCB info names them.

    Args:
        ledger: receives the outcome; gets none where the TCB info did not verify for another reason.
        td: the TD report, which carries the module's signer and attributes.
        documents: the collateral; None where it was not verified.
        refusal: the check that dcap-qvl refused the quote for, with its message.
    """
    if documents:
        identity = module_identity(documents.tcb_info, td) or {}
        mask = int(identity.get("attributesMask", "FFFFFFFFFFFFFFFF"), 16)
        signer, attributes = identity.get("mrsigner", "no such module"), identity.get("attributes", "")
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
        holds, expected, found, detail = False, "a TDX module that the TCB info names", refusal[TDX_MODULE], None
    else:
        return
    ledger.judge(TDX_MODULE, holds, expected=expected, found=found, detail=detail)


def judge_seam(ledger: Ledger, td: TdReport, demands: TcbSection) -> None:
    """Records mr-seam: the TDX module's measurement, where the policy lists some; the TCB info names none."""
    listed, found = demands.mr_seam, td.mr_seam.hex()
    if listed == "any":
        ledger.leave_open(MR_SEAM, found=found)
    else:
        ledger.judge(MR_SEAM, found in listed, expected=" or ".join(listed), found=found)
