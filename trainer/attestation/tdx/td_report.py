"""The TD report inside a quote: its fields, and which attributes a production TD may have.

Source: Intel TDX Module Base Architecture Specification (ATTRIBUTES, XFAM) and Intel TDX DCAP Quote Verification
Library, appendix A.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SEPT_VE_DISABLE_BIT: Final = 28
ATTRIBUTE_NAMES: Final = {
    0: "DEBUG",
    SEPT_VE_DISABLE_BIT: "SEPT_VE_DISABLE",
    29: "MIGRATABLE",
    30: "PKS",
    31: "KL",
    63: "PERFMON",
}
"""Bits of TD ATTRIBUTES (little-endian 64-bit number) that have a name; all others are reserved."""

PRODUCTION_ATTRIBUTES: Final = (1 << SEPT_VE_DISABLE_BIT).to_bytes(8, "little")

XFAM_REQUIRED: Final = 0x3
"""x87 and SSE state: always on."""
XFAM_KNOWN: Final = 0x602E7
"""x87, SSE, AVX, AVX-512 (three parts), PKRU, AMX (two parts): no tracing, user interrupts or supervisor state."""


@dataclass(frozen=True)
class TdReport:
    """The fields of a TD report 1.0 or 1.5 that are judged, as raw bytes; measurement registers are 48 bytes each.

    `mr_service_td` is None in a report 1.0, which has no such field.
    """

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mrtd: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes
    report_data: bytes
    mr_service_td: bytes | None

    @property
    def registers(self) -> tuple[bytes, bytes, bytes, bytes, bytes]:
        """MRTD and RTMR0 to RTMR3: firmware, its configuration, kernel, command line and initrd, application."""
        return (self.mrtd, self.rtmr0, self.rtmr1, self.rtmr2, self.rtmr3)


def attribute_names(attributes: bytes) -> str:
    """Returns the names of the set bits of TD ATTRIBUTES, such as `DEBUG, SEPT_VE_DISABLE`."""
    number = int.from_bytes(attributes, "little")
    bits = (bit for bit in range(8 * len(attributes)) if number >> bit & 1)
    return ", ".join(ATTRIBUTE_NAMES.get(bit, f"reserved bit {bit}") for bit in bits) or "none"


def debuggable(attributes: bytes) -> bool:
    """Returns whether DEBUG (bit 0) is set: the host may then read and change the VM's state."""
    return bool(attributes[0] & 1)


def without_debug(attributes: bytes) -> bytes:
    """Returns TD ATTRIBUTES with DEBUG cleared; `td-debug` judges that bit."""
    return bytes([attributes[0] & 0xFE]) + attributes[1:]


def xfam_acceptable(xfam: bytes) -> bool:
    """Returns whether XFAM enables x87 and SSE and nothing beyond the known set."""
    number = int.from_bytes(xfam, "little")
    return number & XFAM_REQUIRED == XFAM_REQUIRED and number & ~XFAM_KNOWN == 0
