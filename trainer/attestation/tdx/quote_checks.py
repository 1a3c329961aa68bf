"""Checks 01 to 22: is this a genuine quote of a healthy platform, over a production TD?"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Final

from trainer.attestation.catalogue import QUOTE_CODES
from trainer.attestation.checks import CheckCode, Ledger
from trainer.attestation.policy import Policy
from trainer.attestation.tdx.collateral import Collateral, module_identity, parse_collateral
from trainer.attestation.tdx.quote_verification import (
    ParsedQuote,
    QuoteRefused,
    VerifiedQuote,
    parse_quote,
    verify_quote,
)
from trainer.attestation.tdx.td_report import (
    PRODUCTION_ATTRIBUTES,
    XFAM_KNOWN,
    TdReport,
    attribute_names,
    debuggable,
    without_debug,
    xfam_acceptable,
)

_DAY: Final = 86400


@dataclass(frozen=True)
class QuoteFindings:
    """What the quote says, and how long the collateral that vouches for it is valid (Unix seconds).

    `td` is None where the quote could not be read; `valid_until` is None where it did not verify.
    """

    td: TdReport | None
    valid_until: int | None


def judge_quote(ledger: Ledger, quote_hex: str, collateral: bytes, policy: Policy, now: int) -> QuoteFindings:
    """Record the checks of `QUOTE_CODES`.

    Args:
        ledger: where to.
        quote_hex: the quote in hex.
        collateral: the collateral document.
        policy: the reference values.
        now: Unix seconds.
    """
    try:
        quote = parse_quote(bytes.fromhex(quote_hex))
    except ValueError as error:
        ledger.judge(CheckCode.QUOTE_FORMAT, False, expected="a TDX quote", found=str(error))
        ledger.unreached(QUOTE_CODES, "there is no quote to look at")
        return QuoteFindings(None, None)
    # check 02 quote-trailing-bytes
    ledger.compare(CheckCode.QUOTE_TRAILING_BYTES, expected="0 stray bytes", found=f"{quote.slack} stray bytes")
    documents = _judge_collateral(ledger, collateral)
    roots_fit = documents is not None and _roots_fit(quote, documents, policy)
    outcome: VerifiedQuote | QuoteRefused | None = None
    if documents is not None and roots_fit:
        outcome = _verify(quote, documents, policy, now)
    _judge_root(ledger, quote, documents, policy, outcome)
    refused = outcome if isinstance(outcome, QuoteRefused) else None
    _judge_refusal(ledger, refused)
    _judge_report(ledger, quote.report, refused)
    _judge_seam(ledger, quote.report, policy)
    if not isinstance(outcome, VerifiedQuote) or documents is None:
        ledger.unreached(QUOTE_CODES, "the quote was not verified")
        return QuoteFindings(quote.report, None)
    _affirm_verified(ledger, outcome, now)
    _judge_tcb(ledger, outcome, policy, now)
    _judge_module(ledger, quote.report, documents)
    return QuoteFindings(quote.report, outcome.valid_until)


def _judge_collateral(ledger: Ledger, data: bytes) -> Collateral | None:
    try:
        documents = parse_collateral(data)
    except ValueError as error:
        # check 03 collateral-format
        ledger.judge(CheckCode.COLLATERAL_FORMAT, False, expected="a collateral document", found=str(error))
        return None
    ledger.judge(CheckCode.COLLATERAL_FORMAT, True, expected="a collateral document", found="one")
    return documents


def _roots_fit(quote: ParsedQuote, documents: Collateral, policy: Policy) -> bool:
    return all(root == policy.root_key_id for root in (*quote.roots, *documents.roots))


def _verify(quote: ParsedQuote, documents: Collateral, policy: Policy, now: int) -> VerifiedQuote | QuoteRefused:
    try:
        return verify_quote(quote, documents, root_der=policy.root_der, now=now)
    except QuoteRefused as refused:
        return refused


def _judge_root(
    ledger: Ledger,
    quote: ParsedQuote,
    documents: Collateral | None,
    policy: Policy,
    outcome: VerifiedQuote | QuoteRefused | None,
) -> None:
    """The roots that the chains bring along, and the one that dcap-qvl ended at."""
    expected = policy.root_key_id
    verified = (outcome.root_key_id,) if isinstance(outcome, VerifiedQuote) else ()
    roots = (*quote.roots, *(documents.roots if documents else ()), *verified)
    foreign = next((root for root in roots if root != expected), None)
    # check 04 root-of-trust
    if roots:
        ledger.compare(CheckCode.ROOT_OF_TRUST, expected=expected, found=foreign or expected)
    else:
        ledger.judge(CheckCode.ROOT_OF_TRUST, False, expected=expected, found="no root certificate")


def _judge_refusal(ledger: Ledger, refused: QuoteRefused | None) -> None:
    """Record the one check that dcap-qvl stopped at, unless the report itself is judged for it."""
    # check 01 quote-format
    if refused is not None and refused.code is CheckCode.QUOTE_FORMAT:
        ledger.judge(CheckCode.QUOTE_FORMAT, False, expected="a TDX quote, version 4 or 5", found=refused.reason)
        return
    ledger.judge(CheckCode.QUOTE_FORMAT, True, expected="a TDX quote, version 4 or 5", found="one")
    if refused is not None and refused.code not in _OF_THE_REPORT:
        ledger.judge(refused.code, False, expected=_EXPECTED[refused.code], found=refused.reason)


_OF_THE_REPORT: Final = (CheckCode.TD_DEBUG, CheckCode.TD_ATTRIBUTES, CheckCode.SERVICE_TD)
"""Refusals that `_judge_report` answers, from the report's own fields."""

_EXPECTED: Final = {
    CheckCode.COLLATERAL_SIGNATURE: "collateral signed under the root",
    CheckCode.COLLATERAL_VALIDITY: "collateral in date",
    CheckCode.PLATFORM_CERTIFICATE: "a valid, unrevoked certificate chain",
    CheckCode.QUOTE_SIGNATURE: "valid signatures of platform and quoting enclave",
    CheckCode.QUOTING_ENCLAVE: "a quoting enclave that the QE identity names",
    CheckCode.TCB_LEVEL: "a TCB level of this platform",
    CheckCode.TCB_STATUS: "a platform that is not revoked",
    CheckCode.TDX_MODULE: "a TDX module that the TCB info names",
}


def _affirm_verified(ledger: Ledger, verified: VerifiedQuote, now: int) -> None:
    """What dcap-qvl vouches for as a whole, and the dates once more by our own clock."""
    # check 05 collateral-signature
    # check 07 platform-certificate
    # check 08 quote-signature
    # check 09 quoting-enclave
    # check 10 tcb-level
    for code in (
        CheckCode.COLLATERAL_SIGNATURE,
        CheckCode.PLATFORM_CERTIFICATE,
        CheckCode.QUOTE_SIGNATURE,
        CheckCode.QUOTING_ENCLAVE,
        CheckCode.TCB_LEVEL,
    ):
        ledger.judge(code, True, expected=_EXPECTED[code], found="verified")
    # check 06 collateral-validity
    ledger.judge(
        CheckCode.COLLATERAL_VALIDITY,
        verified.valid_from <= now <= verified.valid_until,
        expected=f"a time from {_date(verified.valid_from)} to {_date(verified.valid_until)}",
        found=_date(now),
    )


def _judge_tcb(ledger: Ledger, verified: VerifiedQuote, policy: Policy, now: int) -> None:
    demands = policy.tcb
    accepted = " or ".join(demands.accepted_statuses)
    # check 11 tcb-status
    ledger.judge(
        CheckCode.TCB_STATUS,
        verified.status in demands.accepted_statuses,
        expected=accepted,
        found=verified.status,
    )
    # check 12 tcb-grace
    ledger.judge(
        CheckCode.TCB_GRACE,
        verified.status not in demands.accepted_statuses or _within_grace(verified, demands.grace_days, now),
        expected=f"if out of date, by at most {demands.grace_days} days",
        found=", ".join(f"{level.status} of {_date(level.date)}" for level in verified.levels),
    )
    # check 13 tcb-advisories
    refused = {advisory.upper() for advisory in demands.refused_advisories}
    present = ", ".join(verified.advisories) or "none"
    if refused:
        hit = any(advisory.upper() in refused for advisory in verified.advisories)
        wanted = f"none of {', '.join(sorted(refused))}"
        ledger.judge(CheckCode.TCB_ADVISORIES, not hit, expected=wanted, found=present)
    else:
        ledger.leave_open(CheckCode.TCB_ADVISORIES, found=present)
    # check 14 tcb-evaluation-number
    least, number = demands.min_evaluation_number, verified.evaluation_number
    if least == "any":
        ledger.leave_open(CheckCode.TCB_EVALUATION_NUMBER, found=number)
    else:
        wanted = f"at least {least}"
        ledger.judge(CheckCode.TCB_EVALUATION_NUMBER, number >= least, expected=wanted, found=number)


def _within_grace(verified: VerifiedQuote, grace_days: int, now: int) -> bool:
    """Whether what is out of date became so recently enough; an unexplained out-of-date status is not."""
    if not verified.status.startswith("OutOfDate"):
        return True
    dates = [level.date for level in verified.levels if level.out_of_date]
    return bool(dates) and min(dates) + grace_days * _DAY >= now


def _judge_module(ledger: Ledger, td: TdReport, documents: Collateral) -> None:
    """Signer and attributes of the TDX module against the signed TCB info, which names no MRSEAM."""
    identity = module_identity(documents.tcb_info, td) or {}
    mask = int(identity.get("attributesMask", "FFFFFFFFFFFFFFFF"), 16)
    signer, attributes = identity.get("mrsigner", "no such module"), identity.get("attributes", "")
    found = int(td.seam_attributes.hex(), 16)
    holds = (
        td.mr_signer_seam.hex() == signer.lower()
        and found & ~mask == 0
        and found & mask == int(attributes or "0", 16) & mask
    )
    # check 15 tdx-module
    ledger.judge(
        CheckCode.TDX_MODULE,
        holds,
        expected=f"signer {signer}, attributes {attributes}",
        found=f"signer {td.mr_signer_seam.hex()}, attributes {td.seam_attributes.hex()}",
        detail=f"version {td.tee_tcb_svn[1]}.{td.tee_tcb_svn[0]}, MRSEAM {td.mr_seam.hex()}",
    )


def _judge_seam(ledger: Ledger, td: TdReport, policy: Policy) -> None:
    listed = policy.tcb.mr_seam
    # check 16 mr-seam
    if listed == "any":
        ledger.leave_open(CheckCode.MR_SEAM, found=td.mr_seam)
    else:
        found = td.mr_seam.hex()
        ledger.judge(CheckCode.MR_SEAM, found in listed, expected=" or ".join(listed), found=found)


def _judge_report(ledger: Ledger, td: TdReport, refused: QuoteRefused | None) -> None:
    """What dcap-qvl does not demand of the TD; its own complaint about the same field counts as well."""
    reason = {refused.code: refused.reason} if refused else {}
    # check 17 td-debug
    ledger.judge(
        CheckCode.TD_DEBUG,
        not debuggable(td.td_attributes) and CheckCode.TD_DEBUG not in reason,
        expected="DEBUG off",
        found="DEBUG on" if debuggable(td.td_attributes) else "DEBUG off",
        detail=reason.get(CheckCode.TD_DEBUG),
    )
    # check 18 td-attributes
    ledger.judge(
        CheckCode.TD_ATTRIBUTES,
        without_debug(td.td_attributes) == PRODUCTION_ATTRIBUTES and CheckCode.TD_ATTRIBUTES not in reason,
        expected=attribute_names(PRODUCTION_ATTRIBUTES),
        found=attribute_names(td.td_attributes),
        detail=reason.get(CheckCode.TD_ATTRIBUTES),
    )
    # check 19 td-xfam
    ledger.judge(
        CheckCode.TD_XFAM,
        xfam_acceptable(td.xfam),
        expected=f"x87 and SSE, nothing beyond {XFAM_KNOWN:#x}",
        found=f"{int.from_bytes(td.xfam, 'little'):#x}",
    )
    # check 20 service-td
    ledger.judge(
        CheckCode.SERVICE_TD,
        not any(td.mr_service_td or b"") and CheckCode.SERVICE_TD not in reason,
        expected="none",
        found="none" if td.mr_service_td is None else td.mr_service_td,
        detail=reason.get(CheckCode.SERVICE_TD),
    )
    # check 21 mr-owner
    ledger.compare(CheckCode.MR_OWNER, expected=bytes(len(td.mr_owner)), found=td.mr_owner)
    # check 22 mr-owner-config
    config = td.mr_owner_config
    ledger.compare(CheckCode.MR_OWNER_CONFIG, expected=bytes(len(config)), found=config)


def _date(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
