"""Writer of TDX quotes, versions 4 and 5, and the byte range of each field in a quote.

A quote is, with little-endian numbers: header (48 bytes), in version 5 the type (2) and the size (4) of the body,
the TD report (584 or 648), the size of the signature data (4), and the signature data. The latter are: ECDSA
signature over header and body (64), attestation key (64), then certification data of type 6 with its type (2) and
size (4): the quoting enclave's report (384), its signature by the PCK (64), authentication data with their size
(2), and certification data of type 5, which are the PCK certificate chain in PEM.

Sources: Intel TDX DCAP Quote Generation Library and Quote Verification Library, version 0.9, appendix A.3 (version
4); Intel TDX DCAP, appendix A.4 (version 5: type and size of the body come before it, and the body may be a TD
report 1.5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from trainer.simulator.certificates import Authority, raw_public_key, raw_signature
from trainer.simulator.td_report_writer import QE_REPORT_FIELDS, QeReport, TdFields, TdFields15

V4: Final = 4
V5: Final = 5

_ECDSA_P256: Final = 2
_TDX_TEE_TYPE: Final = 0x81
# Verifiers insist on it.
_INTEL_QE_VENDOR_ID: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_USER_DATA: Final = b"DEVELOPMENT QUOTE".ljust(20, b"\0")
_TD_REPORT_10: Final = 2
_TD_REPORT_15: Final = 3
_PCK_CHAIN_PEM: Final = 5
_QE_REPORT_CERTIFICATION: Final = 6

_HEADER: Final = (
    ("version", 2),
    ("attestation_key_type", 2),
    ("tee_type", 4),
    ("reserved", 4),
    ("qe_vendor_id", 16),
    ("user_data", 20),
)
_V5_BODY: Final = (("body_type", 2), ("body_size", 4))
_SIGNATURE: Final = (("signature_size", 4), ("signature", 64), ("attestation_key", 64))


@dataclass(frozen=True)
class QuoteHeader:
    """The first 48 bytes of a quote."""

    version: int = V4
    attestation_key_type: int = _ECDSA_P256
    tee_type: int = _TDX_TEE_TYPE
    reserved: bytes = bytes(4)
    qe_vendor_id: bytes = _INTEL_QE_VENDOR_ID
    user_data: bytes = _USER_DATA

    def pack(self) -> bytes:
        """Returns the 48 bytes of the header, numbers little-endian."""
        numbers = struct.pack("<HHI", self.version, self.attestation_key_type, self.tee_type)
        return numbers + self.reserved + self.qe_vendor_id + self.user_data


@dataclass(frozen=True)
class QuoteParts:
    """The contents of a quote before anything is signed.

    Attributes:
        header: the header; its version selects the layout.
        td: the TD report. A report 1.5 fits into version 5 only.
        qe_report: the quoting enclave's report; its `report_data` names the attestation key.
        qe_authentication: further bytes that the digest in `qe_report.report_data` covers.
        chain: PCK certificate chain in PEM, leaf first.
        attestation_key: signs header and report.
    """

    header: QuoteHeader
    td: TdFields
    qe_report: QeReport
    qe_authentication: bytes
    chain: str
    attestation_key: ec.EllipticCurvePrivateKey


def assemble(parts: QuoteParts, pck: Authority) -> bytes:
    """Signs header and TD report with the attestation key, and the quoting enclave's report with `pck`."""
    body = parts.td.pack()
    if parts.header.version == V5:  # type and size come before the body
        kind = _TD_REPORT_15 if isinstance(parts.td, TdFields15) else _TD_REPORT_10
        body = struct.pack("<HI", kind, len(body)) + body
    signed = parts.header.pack() + body
    certification = _certification_data(parts, pck)
    signature = (
        raw_signature(parts.attestation_key, signed)
        + raw_public_key(parts.attestation_key)
        + struct.pack("<HI", _QE_REPORT_CERTIFICATION, len(certification))
        + certification
    )
    return signed + struct.pack("<I", len(signature)) + signature


def _certification_data(parts: QuoteParts, pck: Authority) -> bytes:
    report, chain = parts.qe_report.pack(), parts.chain.encode()
    return (
        report
        + raw_signature(pck.key, report)
        + struct.pack("<H", len(parts.qe_authentication))
        + parts.qe_authentication
        + struct.pack("<HI", _PCK_CHAIN_PEM, len(chain))
        + chain
    )


def field_ranges(quote: bytes) -> dict[str, range]:
    """Returns the byte range of each field of a quote of this module by name, in order and without gaps."""
    found, at = {}, 0
    for name, size in _field_sizes(quote):
        found[name] = range(at, at + size)
        at += size
    return found


def _field_sizes(quote: bytes) -> Iterator[tuple[str, int]]:
    """Yields name and size of each field; the sizes of variable fields are read from the quote."""
    yield from _HEADER
    at, td = sum(size for _, size in _HEADER), fields(TdFields)
    if quote[0] == V5:
        yield from _V5_BODY
        td = fields(TdFields15) if quote[at] == _TD_REPORT_15 else td
        at += sum(size for _, size in _V5_BODY)
    for field in td:
        size = len(field.default)  # type: ignore[arg-type]  # every field has a default of the right size
        yield field.name, size
        at += size
    for part in (
        _SIGNATURE,
        (("certification_type", 2), ("certification_size", 4)),
        QE_REPORT_FIELDS,
    ):
        yield from part
        at += sum(size for _, size in part)
    yield "qe_signature", 64
    length = int.from_bytes(quote[at + 64 : at + 66], "little")
    yield "qe_authentication_size", 2
    yield "qe_authentication", length
    at += 66 + length
    yield "chain_type", 2
    yield "chain_size", 4
    yield "chain", int.from_bytes(quote[at + 2 : at + 6], "little")
