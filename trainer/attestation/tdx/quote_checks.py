"""Checks of the quote: its form, and the chain of signatures from Intel's root to the TD report.

Reads quote and collateral, has dcap-qvl verify them, and hands the result to `tcb_checks` and `td_checks`, which
judge what dcap-qvl leaves to its caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from trainer.attestation.checks import CheckDefinition, Ledger, Submodule, TrustClaim
from trainer.attestation.policy import Policy
from trainer.attestation.tdx import tcb_checks as tcb
from trainer.attestation.tdx import td_checks as td
from trainer.attestation.tdx.collateral import Collateral, parse_collateral
from trainer.attestation.tdx.platform_checks import judge_platform
from trainer.attestation.tdx.quote_verification import (
    ParsedQuote,
    QuoteRefused,
    VerifiedQuote,
    parse_quote,
    utc_date,
    verify_quote,
)
from trainer.attestation.tdx.td_report import TdReport

QUOTE_FORMAT: Final = CheckDefinition(
    "quote-format",
    title="the quote is a TDX quote, version 4 or 5, signed with ECDSA P-256",
    attack="an SGX quote or something that only resembles a quote",
    claim=(Submodule.TDX, TrustClaim.HARDWARE),
)
QUOTE_TRAILING_BYTES: Final = CheckDefinition(
    "quote-trailing-bytes",
    title="nothing but zeros follows the quote, and nothing hides between its parts or certificates",
    attack="unsigned bytes that another reader would take for part of the quote",
    claim=(Submodule.TDX, TrustClaim.HARDWARE),
)
COLLATERAL_FORMAT: Final = CheckDefinition(
    "collateral-format",
    title="the collateral is one complete document",
    attack="collateral that two readers understand differently",
    claim=(Submodule.TDX, TrustClaim.HARDWARE),
    hint="fetch the collateral again, or name another source in the policy",
)
ROOT_OF_TRUST: Final = CheckDefinition(
    "root-of-trust",
    title="every certificate chain ends in the policy's root",
    attack="a fake TEE: quotes signed by a development or home-made root",
    claim=(Submodule.TDX, TrustClaim.HARDWARE),
    hint="on a development machine, make a policy with --trust-root; never for real data",
)
COLLATERAL_SIGNATURE: Final = CheckDefinition(
    "collateral-signature",
    title="TCB info, QE identity and CRLs are signed under that root",
    attack="collateral that calls a broken platform up to date",
    claim=(Submodule.TDX, TrustClaim.HARDWARE),
    is_signature=True,
)
COLLATERAL_VALIDITY: Final = CheckDefinition(
    "collateral-validity",
    title="the collateral is in date",
    attack="old collateral that does not know of a revocation or advisory",
    claim=(Submodule.TDX, TrustClaim.HARDWARE),
    hint="fetch newer collateral; `--at` judges a saved result as of another time",
)
PLATFORM_CERTIFICATE: Final = CheckDefinition(
    "platform-certificate",
    title="the platform's certificate chains to the root, is in date and not revoked",
    attack="a platform key that was extracted and revoked",
    claim=(Submodule.TDX, TrustClaim.INSTANCE_IDENTITY),
    is_signature=True,
)
QUOTE_SIGNATURE: Final = CheckDefinition(
    "quote-signature",
    title="the quoting enclave of that platform signed this quote",
    attack="any change to any byte of the TD report",
    claim=(Submodule.TDX, TrustClaim.HARDWARE),
    is_signature=True,
)
QUOTING_ENCLAVE: Final = CheckDefinition(
    "quoting-enclave",
    title="the quoting enclave is Intel's, in production mode, at a known version",
    attack="an enclave of the attacker's that signs quotes",
    claim=(Submodule.TDX, TrustClaim.HARDWARE),
)
TCB_LEVEL: Final = CheckDefinition(
    "tcb-level",
    title="the TCB info is for this platform and knows its versions",
    attack="collateral of another platform model",
    claim=(Submodule.TDX, TrustClaim.HARDWARE),
)

QUOTE_CHECKS: Final = (
    QUOTE_FORMAT,
    QUOTE_TRAILING_BYTES,
    COLLATERAL_FORMAT,
    ROOT_OF_TRUST,
    COLLATERAL_SIGNATURE,
    COLLATERAL_VALIDITY,
    PLATFORM_CERTIFICATE,
    QUOTE_SIGNATURE,
    QUOTING_ENCLAVE,
    TCB_LEVEL,
    *tcb.TCB_CHECKS,
    *td.TD_CHECKS,
)
"""The checks of a quote, in order: the first ones of every appraisal."""

_VERIFIED_BY_DCAP_QVL: Final = {
    COLLATERAL_SIGNATURE: "collateral signed under the root",
    PLATFORM_CERTIFICATE: "a valid, unrevoked certificate chain",
    QUOTE_SIGNATURE: "valid signatures of platform and quoting enclave",
    QUOTING_ENCLAVE: "a quoting enclave that the QE identity names",
    TCB_LEVEL: "a TCB level of this platform",
}
"""Checks that dcap-qvl makes by itself → what they expect."""

# dcap-qvl refuses with a message and no code. A phrase comes before those that it contains: "QE Identity
# expired" is a matter of dates, any other message about the "QE Identity" one of signatures.
_PHRASES: Final = (
    (
        QUOTING_ENCLAVE,
        ("QE MRSIGNER", "QE ISV", "QE MISCSELECT", "QE ATTRIBUTES", "QE report validation"),
    ),
    (QUOTING_ENCLAVE, ("Unsupported QE Identity", "No TCB levels found in QE")),
    (
        COLLATERAL_VALIDITY,
        ("TCBInfo expired", "QE Identity expired", "in the future", "CRL is not in date"),
    ),
    (COLLATERAL_SIGNATURE, ("tcb_info", "qe_identity", "TcbInfo", "QeIdentity", "CRL", "TCB Info")),
    (COLLATERAL_SIGNATURE, ("QE Identity", "IssuerNotCrlSigner", "InvalidCrlSignature")),
    (tcb.TDX_MODULE, ("TDX module",)),
    (
        TCB_LEVEL,
        ("No matching TCB level", "Fmspc", "component count", "non-TDX TCB", "TDX TCB", "PCE id"),
    ),
    (tcb.TCB_STATUS, ("TCB status is invalid",)),
    (td.TD_DEBUG, ("Debug mode",)),
    (
        td.TD_ATTRIBUTES,
        ("SEPT_VE_DISABLE", "TD migration", "TD profiling", "TD attributes", "SERVTD_EXT"),
    ),
    (td.SERVICE_TD, ("service TD", "SERVTD")),
    (
        QUOTE_FORMAT,
        ("decode quote", "quote version", "QE vendor", "TEE type", "TEE quote", "key type"),
    ),
    (PLATFORM_CERTIFICATE, ("certificate", "Certificate", "CertRevoked", "PCK", "Intel extension")),
)
"""Which check a message of dcap-qvl fails: the first entry one of whose phrases the message contains."""


@dataclass(frozen=True)
class QuoteFindings:
    """What later checks need of a quote.

    Attributes:
        td: the TD report; None where the quote could not be read.
        valid_until: Unix seconds at which the collateral expires; None where the quote did not verify.
    """

    td: TdReport | None
    valid_until: int | None


def judge_quote(
    ledger: Ledger, quote_hex: str, collateral: bytes, policy: Policy, now: int
) -> QuoteFindings:
    """Records every check of `QUOTE_CHECKS`, and platform-ppid.

    Args:
        ledger: receives the outcomes.
        quote_hex: the quote in hex.
        collateral: the collateral document.
        policy: the reference values.
        now: Unix seconds.
    """
    try:
        quote = parse_quote(bytes.fromhex(quote_hex))
    except ValueError as error:
        ledger.judge(QUOTE_FORMAT, False, expected="a TDX quote", found=str(error))
        ledger.unreached(QUOTE_CHECKS, "there is no quote to look at")
        return QuoteFindings(None, None)
    # dcap-qvl ignores bytes that no length covers, and bytes around certificates. Another reader could take
    # them for part of what was signed.
    ledger.compare(
        QUOTE_TRAILING_BYTES, expected="0 stray bytes", found=f"{quote.slack} stray bytes"
    )
    documents = _judge_collateral(ledger, collateral)
    verified, refusal = _verify_under_root(ledger, quote, documents, policy, now)
    problem = refusal.get(QUOTE_FORMAT)
    ledger.judge(
        QUOTE_FORMAT,
        problem is None,
        expected="a TDX quote, version 4 or 5",
        found=problem or "one",
    )
    _judge_verification(ledger, verified, refusal, now)
    tcb.judge_tcb(ledger, verified, refusal, policy.tcb, now)
    # The TCB info that describes the TDX module counts only after its signature was verified.
    tcb.judge_module(ledger, quote.report, documents if verified else None, refusal, policy.tcb)
    td.judge_td(ledger, quote.report, refusal, policy.platform)
    judge_platform(ledger, verified, policy.platform)
    ledger.unreached(QUOTE_CHECKS, "the quote was not verified")
    return QuoteFindings(quote.report, verified.valid_until if verified else None)


def _judge_collateral(ledger: Ledger, data: bytes) -> Collateral | None:
    documents, problem = None, "one"
    try:
        documents = parse_collateral(data)
    except ValueError as error:
        problem = str(error)
    ledger.judge(
        COLLATERAL_FORMAT, documents is not None, expected="a collateral document", found=problem
    )
    return documents


def _verify_under_root(
    ledger: Ledger, quote: ParsedQuote, documents: Collateral | None, policy: Policy, now: int
) -> tuple[VerifiedQuote | None, Mapping[CheckDefinition, str]]:
    """Records root-of-trust, and has dcap-qvl verify the quote if every chain ends in the policy's root.

    Returns:
        The verified quote or None; and the check that dcap-qvl's refusal fails, with its message, or nothing.
    """
    expected = policy.root_key_id
    # The self-issued certificates that quote and collateral bring along must be the policy's root as well:
    # another verifier may trust a chain by the root inside it.
    roots = [*quote.chain.roots, *(documents.roots if documents else ())]
    verified, refusal = None, {}
    # Under another root dcap-qvl does not run: it would report a bad signature, and two checks would answer one
    # attack.
    if documents and all(root == expected for root in roots):
        try:
            verified = verify_quote(quote, documents, root_der=policy.root_der, now=now)
            roots.append(verified.root_key_id)
        except QuoteRefused as refused:
            refusal = {refused_check(refused.reason): refused.reason}
    foreign = next((root for root in roots if root != expected), None)
    # No root at all is a failure: nothing to compare must not count as nothing wrong.
    found = (foreign or expected) if roots else "no root certificate"
    ledger.compare(ROOT_OF_TRUST, expected=expected, found=found)
    return verified, refusal


def refused_check(message: str) -> CheckDefinition:
    """Returns the check that a message of dcap-qvl fails; `quote-signature` for a message of no known form."""
    for definition, phrases in _PHRASES:
        if any(phrase in message for phrase in phrases):
            return definition
    # A later release of dcap-qvl may word its messages differently: the quote is refused all the same.
    return QUOTE_SIGNATURE


def _judge_verification(
    ledger: Ledger, verified: VerifiedQuote | None, refusal: Mapping[CheckDefinition, str], now: int
) -> None:
    """Records what dcap-qvl verified or refused, and compares the collateral's dates with `now` once more."""
    # dcap-qvl stops at the first failure. After a refusal only the check that it names has an outcome; the
    # others stay open and become not-reached.
    for definition, expected in _VERIFIED_BY_DCAP_QVL.items():
        if verified or definition in refusal:
            ledger.judge(
                definition,
                verified is not None,
                expected=expected,
                found=refusal.get(definition, "verified"),
            )
    # The dates are the intersection over all parts of the collateral: from the latest issue to the first expiry.
    if verified:
        begin, end = verified.valid_from, verified.valid_until
        holds, found = begin <= now <= end, utc_date(now)
        expected = f"a time from {utc_date(begin)} to {utc_date(end)}"
    elif COLLATERAL_VALIDITY in refusal:
        holds, expected, found = False, "collateral in date", refusal[COLLATERAL_VALIDITY]
    else:
        return
    ledger.judge(COLLATERAL_VALIDITY, holds, expected=expected, found=found)
