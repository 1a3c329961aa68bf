"""TDX quotes: parsing, and DCAP verification at one moment. The cryptography is dcap-qvl's.

dcap-qvl verifies signatures, certificate chains, CRLs, dates, the quoting enclave and the TDX module. It leaves to
its caller which root the chains end in, bytes after the quote, and which TCB statuses are accepted; these are
returned as values that the checks judge.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from typing import Final

import dcap_qvl

from trainer.attestation.tdx.collateral import Collateral, module_level, overdue_list
from trainer.attestation.tdx.pem_chain import PemChain, read_pem_chain
from trainer.attestation.tdx.td_report import TdReport

# Sizes of a quote's fixed parts, in bytes. Source: Intel TDX DCAP Quote Generation and Quote Verification
# Library, appendix A.3.
_HEADER_BYTES: Final = 48
_REPORT_10_BYTES: Final = 584
_SIGNATURE_AND_KEY_BYTES: Final = (
    128  # ECDSA P-256: signature r ‖ s (64), attestation key x ‖ y (64)
)
_QE_REPORT_BYTES: Final = 384  # the quoting enclave's SGX report body
_QE_SIGNATURE_BYTES: Final = 64
_QE_CERTIFICATION: Final = 6  # certification data that holds the quoting enclave's report
_PCK_CHAIN: Final = 5  # certification data that is the PCK certificate chain in PEM
_V5: Final = 5

# No subclasses of each other, unlike in the stubs.
_REPORTS: Final = (
    dcap_qvl.TdReport10,
    dcap_qvl.TdReport15,
)


class QuoteRefused(Exception):  # noqa: N818 -- an expected outcome, not an error of this program
    """dcap-qvl refused a quote or its collateral.

    Args:
        reason: dcap-qvl's message.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class ParsedQuote:
    """A quote that was read but not verified.

    Attributes:
        raw: its bytes.
        report: the TD report.
        slack: number of bytes after the quote, between its parts or among its certificates that no field covers.
            Zeros after the quote are not counted: Intel's quote generation service fills its buffer with them.
        chain: the platform's certificate chain.
    """

    raw: bytes
    report: TdReport
    slack: int
    chain: PemChain


@dataclass(frozen=True)
class TcbLevel:
    """One matched TCB level: of the platform, the quoting enclave or the TDX module.

    Attributes:
        status: the level's status, in Intel's words.
        date: Intel's `tcbDate` in Unix seconds: the level has the fixes of all advisories up to that day.
    """

    status: str
    date: int


@dataclass(frozen=True)
class VerifiedQuote:
    """What dcap-qvl verified. Times in Unix seconds.

    Attributes:
        status: the worst of platform, quoting enclave and TDX module.
        advisories: ids of all advisories that apply.
        evaluation_number: the lower one of TCB info and QE identity.
        root_key_id: SHA-384 of the root's public key.
        valid_from: when the most recent part of the collateral was issued.
        valid_until: when the first part of the collateral expires.
        levels: the levels that `status` was derived from.
        ppid: platform provisioning id of the platform's certificate, 16 bytes.
    """

    status: str
    advisories: tuple[str, ...]
    evaluation_number: int
    root_key_id: bytes
    valid_from: int
    valid_until: int
    levels: tuple[TcbLevel, ...]
    ppid: bytes


def parse_quote(raw: bytes) -> ParsedQuote:
    """Reads a TDX quote, version 4 or 5, without verifying anything.

    Raises:
        ValueError: not such a quote.
    """
    quote = dcap_qvl.parse_quote(raw)
    report = quote.report
    if not isinstance(report, _REPORTS):
        raise ValueError(  # noqa: TRY004 -- wrong content, not a wrong type here
            f"a {quote.quote_type()} quote with a {type(report).__name__}"
        )
    td_report = TdReport(
        tee_tcb_svn=report.tee_tcb_svn,
        mr_seam=report.mr_seam,
        mr_signer_seam=report.mr_signer_seam,
        seam_attributes=report.seam_attributes,
        td_attributes=report.td_attributes,
        xfam=report.xfam,
        mrtd=report.mr_td,
        mr_config_id=report.mr_config_id,
        mr_owner=report.mr_owner,
        mr_owner_config=report.mr_owner_config,
        rtmr0=report.rt_mr0,
        rtmr1=report.rt_mr1,
        rtmr2=report.rt_mr2,
        rtmr3=report.rt_mr3,
        report_data=report.report_data,
        mr_service_td=report.mr_service_td if isinstance(report, dcap_qvl.TdReport15) else None,
    )
    slack, pem = _read_certification(raw, quote.header.version)
    chain = read_pem_chain(pem)
    return ParsedQuote(raw, td_report, slack + chain.stray, chain)


def _read_certification(raw: bytes, version: int) -> tuple[int, bytes]:
    """Returns the number of bytes that no length field covers, and the certificate chain. dcap-qvl decoded `raw`.

    The quote's layout: header, report, signature length (4), signature, key, certification data of kind 6. That
    data holds the quoting enclave's report and signature, authentication data, and the certificate chain. Each
    has a length of its own, so two of them may disagree by bytes that nobody signed.

    Raises:
        ValueError: certification data of another kind, which dcap-qvl would read as if it were of this one.
    """
    # `at` is the offset of the signature length at first, then walks through the signature data.
    at = _HEADER_BYTES + _REPORT_10_BYTES
    if version == _V5:  # body type (2 bytes) and body size (4 bytes) come before the body
        at = _HEADER_BYTES + 6 + _number(raw, _HEADER_BYTES + 2, 4)
    signature_end = at + 4 + _number(raw, at, 4)
    at += 4 + _SIGNATURE_AND_KEY_BYTES
    # Certification data: kind (2), size (4), content.
    kind, certification_end = _number(raw, at, 2), at + 6 + _number(raw, at + 2, 4)
    slack = len(raw[signature_end:].rstrip(b"\0")) + abs(signature_end - certification_end)
    if kind != _QE_CERTIFICATION:
        raise ValueError(f"certification data of kind {kind}")
    at += 6 + _QE_REPORT_BYTES + _QE_SIGNATURE_BYTES
    # Authentication data of the quoting enclave: size (2), content. The certificate chain after it, again with
    # kind and size, must end where the outer certification data ends.
    at += 2 + _number(raw, at, 2)
    kind, chain_end = _number(raw, at, 2), at + 6 + _number(raw, at + 2, 4)
    chain = raw[at + 6 : chain_end] if kind == _PCK_CHAIN else b""
    return slack + abs(certification_end - chain_end), chain


def _number(raw: bytes, at: int, size: int) -> int:
    return int.from_bytes(raw[at : at + size], "little")


def verify_quote(
    quote: ParsedQuote, collateral: Collateral, *, root_der: bytes | None, now: int
) -> VerifiedQuote:
    """Has dcap-qvl verify a quote with its collateral at one moment.

    Args:
        quote: the quote.
        collateral: its collateral.
        root_der: the one trusted root certificate in DER; None for Intel's, built into dcap-qvl.
        now: Unix seconds; the only time that anything is compared with.

    Raises:
        QuoteRefused: dcap-qvl refused, with its message.
    """
    # Before dcap-qvl, which accepts certificates in any order, and more of them than it needs.
    if not quote.chain.is_linked:
        raise QuoteRefused("the PCK certificates are not a chain: platform, issuer, root")
    # dcap-qvl has no use for the chain beside the PCK CRL: the quote names the same issuer.
    if not all(chain.is_signed for chain in collateral.chains):
        raise QuoteRefused(
            "in a chain of the CRL, TCB Info or QE Identity, one certificate did not sign the other"
        )
    if overdue := overdue_list(collateral, now):
        raise QuoteRefused(overdue)
    # `claims_only` accepts every TCB status but Revoked: `tcb_checks` judges each value under the policy.
    policy = dcap_qvl.QuotePolicy.claims_only(now)
    try:
        verified = dcap_qvl.QuoteVerifier(root_der).verify_with_policy(
            quote.raw, collateral.handle, now, policy
        )
    except ValueError as error:
        raise QuoteRefused(str(error).removeprefix("Verification failed: ")) from None
    claims = json.loads(verified.to_json())
    platform, qe = claims["platform"], claims["qe"]
    # dcap-qvl compares only the FMSPC of TCB info and platform certificate. Intel's library compares the id of
    # the provisioning certification enclave too: TCB info for another one may rate this platform too high.
    found, stated = (
        bytes(platform["pck"]["pce_id"]).hex(),
        str(collateral.tcb_info.get("pceId", "none")).lower(),
    )
    if stated != found:
        raise QuoteRefused(
            f"the TCB info is for PCE id {stated}, the platform's certificate says {found}"
        )
    documents = (
        platform["tcb_level"],
        qe["tcb_level"],
        platform["current_tcb_level"],
        module_level(collateral.tcb_info, quote.report),
    )
    return VerifiedQuote(
        status=claims["tcb"]["status"],
        advisories=tuple(claims["tcb"]["advisory_ids"]),
        evaluation_number=claims["tcb"]["eval_data_number"],
        root_key_id=bytes(platform["root_key_id"]),
        # Every part must be valid: the latest issue date of all, and the first expiry of all.
        valid_from=max(claims["latest_issue_date"], claims["qe_iden_latest_issue_date"]),
        valid_until=min(
            claims["earliest_expiration_date"], claims["qe_iden_earliest_expiration_date"]
        ),
        levels=tuple(
            TcbLevel(
                level["tcbStatus"], int(dt.datetime.fromisoformat(level["tcbDate"]).timestamp())
            )
            for level in documents
            if level
        ),
        ppid=bytes(platform["pck"]["ppid"]),
    )


def utc_date(seconds: int) -> str:
    """Returns Unix seconds as an ISO 8601 date and time, as collateral writes it."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
