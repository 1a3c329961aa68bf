"""Collateral: the signed statements of Intel, or of a development root, about platforms; and the roots of chains.

Source of the documents: Intel PCS API v4 (TCB info version 3, QE identity version 2), in the JSON form of
dcap-qvl's `QuoteCollateralV3`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import dcap_qvl
from cryptography import x509

from trainer.attestation.tdx.pem_chain import MALFORMED, PemChain, read_pem_chain
from trainer.attestation.tdx.td_report import TdReport
from trainer.encoding import parse_json

MAX_COLLATERAL_BYTES: Final = 4 << 20

_KEYS: Final = (
    "pck_crl_issuer_chain",
    "root_ca_crl",
    "pck_crl",
    "tcb_info_issuer_chain",
    "tcb_info",
    "tcb_info_signature",
    "qe_identity_issuer_chain",
    "qe_identity",
    "qe_identity_signature",
)

_FOREIGN_CHAIN: Final = "pck_certificate_chain"
"""A key that some tools add to collateral: the certificates of the machine that it was fetched for."""

INTEL_ROOT_KEY_ID: Final = bytes.fromhex(
    "46e403bd34f05a3f2817ab9badcaacc7ffc98e0f261008cd30dae936cace18d5dcf58eef31463613de1570d516200993"
)
"""SHA-384 of the public key of the Intel SGX Root CA, as dcap-qvl reports it in `root_key_id`."""


@dataclass(frozen=True)
class Collateral:
    """Collateral that was read but not verified.

    Attributes:
        handle: dcap-qvl's form of it.
        tcb_info: its TCB info document, parsed.
        chains: the certificate chains of the issuers of PCK CRL, TCB info and QE identity.
    """

    handle: dcap_qvl.QuoteCollateralV3
    tcb_info: Mapping[str, Any]
    chains: tuple[PemChain, ...]

    @property
    def roots(self) -> tuple[bytes, ...]:
        """Key ids of the self-issued certificates in its chains."""
        return tuple(root for chain in self.chains for root in chain.roots)


def parse_collateral(data: bytes) -> Collateral:
    """Reads collateral in dcap-qvl's `QuoteCollateralV3` JSON form without verifying anything.

    A `pck_certificate_chain` in it is dropped. It belongs to one machine, and dcap-qvl would take it in place of
    the chain inside the quote: a genuine quote would look forged, and one without a chain complete.

    Raises:
        ValueError: too large, or not such a document.
    """
    if len(data) > MAX_COLLATERAL_BYTES:
        raise ValueError(f"larger than {MAX_COLLATERAL_BYTES} bytes")
    # Refuses duplicate keys and other JSON that two parsers may read differently.
    document = parse_json(data)
    if not isinstance(document, dict) or not document.keys() <= {*_KEYS, _FOREIGN_CHAIN}:
        raise ValueError("not an object with the keys of QuoteCollateralV3 alone")
    document.pop(_FOREIGN_CHAIN, None)
    handle = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(document))
    tcb_info = parse_json(handle.tcb_info)
    if not isinstance(tcb_info, dict):
        raise ValueError("the TCB info is not a JSON object")  # noqa: TRY004 -- wrong content, not a wrong type
    # The issuers of PCK CRL, TCB info and QE identity. The platform's own certificate comes with the quote.
    texts = (
        handle.pck_crl_issuer_chain,
        handle.tcb_info_issuer_chain,
        handle.qe_identity_issuer_chain,
    )
    chains = tuple(read_pem_chain(text.encode()) for text in texts)
    if any(chain.stray or not chain.is_linked for chain in chains):
        raise ValueError(
            "a chain that is not one certificate after the other, each issued by the next"
        )
    return Collateral(handle, tcb_info, chains)


def overdue_list(collateral: Collateral, now: int) -> str | None:
    """Returns which CRL is not in date, in words; None if both are, or cannot be read: dcap-qvl will say so.

    dcap-qvl has one message for all that is wrong with a certificate chain, an expired CRL among it.
    """
    for name, der in (
        ("root CA", collateral.handle.root_ca_crl),
        ("PCK", collateral.handle.pck_crl),
    ):
        try:
            crl = x509.load_der_x509_crl(der)
            begin, end = crl.last_update_utc, crl.next_update_utc
        except (ValueError, *MALFORMED):
            return None
        # RFC 5280, section 5.1.2.5, demands nextUpdate; the syntax does not.
        if end is None or not begin.timestamp() <= now <= end.timestamp():
            return f"the {name} CRL is not in date: {begin} to {end}"
    return None


def module_identity(tcb_info: Mapping[str, Any], report: TdReport) -> Mapping[str, Any] | None:
    """Returns the TCB info's entry on the report's TDX module: that of its major version, or the general one.

    Source: Intel PCS API v4, `tdxModuleIdentities` (id `TDX_01` is major version 1) and `tdxModule`.
    """
    # TEE_TCB_SVN: byte 0 is the module's minor version, byte 1 its major version.
    major = report.tee_tcb_svn[1]
    if major == 0:
        general = tcb_info.get("tdxModule")
        return general if isinstance(general, dict) else None
    identities: Sequence[Any] = tcb_info.get("tdxModuleIdentities") or ()
    wanted = f"TDX_{major:02X}"
    return next(
        (entry for entry in identities if isinstance(entry, dict) and entry.get("id") == wanted),
        None,
    )


def module_level(tcb_info: Mapping[str, Any], report: TdReport) -> Mapping[str, Any] | None:
    """Returns the TCB level of the TDX module; None if the TCB info has none for it."""
    identity = module_identity(tcb_info, report) or {}
    levels: Sequence[Mapping[str, Any]] = identity.get("tcbLevels", ())
    # Levels are listed from the newest version to the oldest: the first one that the module reaches is its
    # level.
    return next(
        (level for level in levels if report.tee_tcb_svn[0] >= level["tcb"]["isvsvn"]), None
    )
