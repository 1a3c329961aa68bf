"""Collateral: the signed statements of Intel, or of a development root, about platforms; and the roots of chains.

Source of the documents: Intel PCS API v4 (TCB info version 3, QE identity version 2), in the JSON form of
dcap-qvl's `QuoteCollateralV3`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import dcap_qvl
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from trainer.attestation.tdx.td_report import TdReport
from trainer.encoding import parse_json

MAX_COLLATERAL_BYTES: Final = 4 << 20

# What `cryptography` raises on malformed certificates, besides ValueError.
_MALFORMED: Final = (TypeError, UnsupportedAlgorithm, x509.InvalidVersion)

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
        roots: key ids of the self-issued certificates in its chains.
    """

    handle: dcap_qvl.QuoteCollateralV3
    tcb_info: Mapping[str, Any]
    roots: tuple[bytes, ...]


def root_key_id(certificate: x509.Certificate) -> bytes:
    """Returns the SHA-384 of a root's EC public key point (0x04‖X‖Y): Intel's `root_key_id`.

    Raises:
        ValueError: not an EC key.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("the root's key is not an EC key")  # noqa: TRY004 -- wrong content, not a wrong type here
    return hashlib.sha384(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)).digest()


@lru_cache(maxsize=64)
def root_key_ids(pem: bytes) -> tuple[bytes, ...]:
    """Returns the key ids of the self-issued certificates in a PEM chain; zero bytes after it are ignored.

    Cached: Intel's chains are the same in every quote and collateral.

    Raises:
        ValueError: a certificate in it cannot be read.
    """
    text = pem.rstrip(b"\0")
    if b"-----BEGIN CERTIFICATE-----" not in text:
        return ()
    try:
        certificates = x509.load_pem_x509_certificates(text)
        return tuple(root_key_id(each) for each in certificates if each.issuer == each.subject)
    except _MALFORMED as error:
        raise ValueError(f"a certificate that cannot be read: {type(error).__name__}") from None


def parse_collateral(data: bytes) -> Collateral:
    """Reads collateral in dcap-qvl's `QuoteCollateralV3` JSON form without verifying anything.

    Raises:
        ValueError: too large, or not such a document.
    """
    if len(data) > MAX_COLLATERAL_BYTES:
        raise ValueError(f"larger than {MAX_COLLATERAL_BYTES} bytes")
    parse_json(data)  # refuses duplicate keys and other JSON that two parsers may read differently
    handle = dcap_qvl.QuoteCollateralV3.from_json(data.decode())
    tcb_info = parse_json(handle.tcb_info)
    if not isinstance(tcb_info, dict):
        raise ValueError("the TCB info is not a JSON object")  # noqa: TRY004 -- wrong content, not a wrong type
    # The issuers of PCK CRL, TCB info and QE identity. The platform's own certificate comes with the quote.
    chains = (handle.pck_crl_issuer_chain, handle.tcb_info_issuer_chain, handle.qe_identity_issuer_chain)
    roots = tuple(root for chain in chains for root in root_key_ids(chain.encode()))
    return Collateral(handle, tcb_info, roots)


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
    return next((entry for entry in identities if isinstance(entry, dict) and entry.get("id") == wanted), None)


def module_level(tcb_info: Mapping[str, Any], report: TdReport) -> Mapping[str, Any] | None:
    """Returns the TCB level of the TDX module; None if the TCB info has none for it."""
    identity = module_identity(tcb_info, report) or {}
    levels: Sequence[Mapping[str, Any]] = identity.get("tcbLevels", ())
    # Levels are listed from the newest version to the oldest: the first one that the module reaches is its
    # level.
    return next((level for level in levels if report.tee_tcb_svn[0] >= level["tcb"]["isvsvn"]), None)
