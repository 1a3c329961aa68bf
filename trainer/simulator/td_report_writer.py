"""Writers of the two reports in a TDX quote: the TD report, and the quoting enclave's report.

Source: Intel TDX DCAP Quote Generation Library and Quote Verification Library, version 0.9, appendix A.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import Final

MEASUREMENT_BYTES: Final = 48
TD_REPORT_BYTES: Final = 584
QE_REPORT_BYTES: Final = 384

SEPT_VE_DISABLE: Final = bytes.fromhex("0000001000000000")
"""TD attributes of a production TD: bit 28; bit 0 would be DEBUG."""

_ZERO: Final = bytes(MEASUREMENT_BYTES)


@dataclass(frozen=True)
class TdFields:
    """All fields of a TD report 1.0 as raw bytes, in the order of the quote.

    The defaults describe a TD on an up-to-date platform of the development PKI without any measurement.
    """

    tee_tcb_svn: bytes = bytes([6, 1, 3]) + bytes(13)
    """16 bytes; the first is the TDX module's security version, the second its major version."""
    mr_seam: bytes = _ZERO
    mr_signer_seam: bytes = _ZERO
    seam_attributes: bytes = bytes(8)
    td_attributes: bytes = SEPT_VE_DISABLE
    xfam: bytes = bytes.fromhex("e702060000000000")
    mrtd: bytes = _ZERO
    mr_config_id: bytes = _ZERO
    mr_owner: bytes = _ZERO
    mr_owner_config: bytes = _ZERO
    rtmr0: bytes = _ZERO
    rtmr1: bytes = _ZERO
    rtmr2: bytes = _ZERO
    rtmr3: bytes = _ZERO
    report_data: bytes = bytes(64)

    def __post_init__(self) -> None:
        for field in fields(self):
            size = len(field.default)  # type: ignore[arg-type]  # every field has a default of the right size
            if len(getattr(self, field.name)) != size:
                raise ValueError(
                    f"{field.name}: expected {size} bytes, got {len(getattr(self, field.name))}"
                )

    def pack(self) -> bytes:
        """Returns the 584 bytes of a TD report 1.0, or the 648 bytes of a TD report 1.5."""
        # The order of the dataclass fields is the order in the report (appendix A.3).
        return b"".join(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class TdFields15(TdFields):
    """All fields of a TD report 1.5: those of 1.0, and two more, which only quotes of version 5 can contain."""

    tee_tcb_svn2: bytes = bytes([6, 1, 3]) + bytes(13)
    """16 bytes: security versions of the TDX module that is loaded now, after an update without a restart."""
    mr_service_td: bytes = _ZERO
    """Measurement of the service TD that is bound to this one; zero without one."""


QE_REPORT_FIELDS: Final = (
    ("qe_cpu_svn", 16),
    ("qe_misc_select", 4),
    ("qe_reserved_1", 28),
    ("qe_attributes", 16),
    ("qe_mr_enclave", 32),
    ("qe_reserved_2", 32),
    ("qe_mr_signer", 32),
    ("qe_reserved_3", 96),
    ("qe_isv_prod_id", 2),
    ("qe_isv_svn", 2),
    ("qe_reserved_4", 60),
    ("qe_report_data", 64),
)
"""Names and sizes in bytes of the fields that `QeReport.pack` writes."""


@dataclass(frozen=True)
class QeReport:
    """SGX enclave report of the TD quoting enclave; `report_data` binds the attestation key to it."""

    cpu_svn: bytes
    """16 bytes."""
    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    misc_select: int = 0
    attributes: bytes = bytes.fromhex("1100000000000000e700000000000000")
    report_data: bytes = bytes(64)

    def pack(self) -> bytes:
        """Returns the 384 bytes of the report."""
        return (
            self.cpu_svn
            + struct.pack("<I", self.misc_select)
            + bytes(28)
            + self.attributes
            + self.mr_enclave
            + bytes(32)
            + self.mr_signer
            + bytes(96)
            + struct.pack("<HH", self.isv_prod_id, self.isv_svn)
            + bytes(60)
            + self.report_data
        )
