"""The TD report inside a quote: its fields, and which attributes a production TD may have.

Source: Intel TDX Module Base Architecture Specification (ATTRIBUTES, XFAM) and Intel TDX DCAP Quote Generation and
Quote Verification Library, appendix A.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Final, Literal

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

XfamName = Literal["CET", "UINTR"]
"""CPU state that clouds enable for every VM: shadow stacks of user and supervisor, user interrupts."""
XFAM_BY_NAME: Final[Mapping[XfamName, int]] = {"CET": 0x1800, "UINTR": 0x4000}
"""What a policy may allow beyond `XFAM_KNOWN`."""


@dataclass(frozen=True)
class TdReport:
    """The fields of a TD report 1.0 or 1.5 that are judged, as raw bytes, each with its offset and size.

    `mr_service_td` is None in a report 1.0, which has no such field.
    """

    tee_tcb_svn: (
        bytes  # 0, 16: security versions: TDX module (minor, major), late microcode, reserved
    )
    mr_seam: bytes  # 16, 48: measurement of the TDX module
    mr_signer_seam: bytes  # 64, 48: its signer; zero for Intel
    seam_attributes: bytes  # 112, 8: zero for a production module
    td_attributes: bytes  # 120, 8: see `ATTRIBUTE_NAMES`
    xfam: bytes  # 128, 8: extended CPU state that the VM may use
    mrtd: bytes  # 136, 48: the VM's initial memory, which is its firmware
    mr_config_id: bytes  # 184, 48: chosen by the host before the VM runs, see `config_id`
    mr_owner: bytes  # 232, 48: chosen by the host
    mr_owner_config: bytes  # 280, 48: chosen by the host
    rtmr0: bytes  # 328, 48: extended by the firmware with its configuration
    rtmr1: bytes  # 376, 48: kernel
    rtmr2: bytes  # 424, 48: command line and initrd
    rtmr3: bytes  # 472, 48: extended by the OS and the application
    report_data: bytes  # 520, 64: chosen by the caller inside the VM
    mr_service_td: bytes | None  # 600, 48: digest of the service TDs that are bound to the VM

    @property
    def registers(self) -> tuple[bytes, bytes, bytes, bytes, bytes]:
        """MRTD and RTMR0 to RTMR3: firmware, its configuration, kernel, command line and initrd, application."""
        return (self.mrtd, self.rtmr0, self.rtmr1, self.rtmr2, self.rtmr3)


def attribute_names(attributes: bytes) -> str:
    """Returns the names of the set bits of TD ATTRIBUTES, such as `DEBUG, SEPT_VE_DISABLE`."""
    number = int.from_bytes(attributes, "little")
    bits = (bit for bit in range(8 * len(attributes)) if number >> bit & 1)
    return ", ".join(ATTRIBUTE_NAMES.get(bit, f"reserved bit {bit}") for bit in bits) or "none"


def xfam_limit(allowed: Sequence[XfamName]) -> int:
    """Returns every bit that XFAM may have: the known set, and what `allowed` names."""
    return reduce(or_, (XFAM_BY_NAME[name] for name in allowed), XFAM_KNOWN)


def xfam_acceptable(xfam: bytes, limit: int) -> bool:
    """Returns whether XFAM enables x87 and SSE and nothing beyond `limit`."""
    number = int.from_bytes(xfam, "little")
    return number & XFAM_REQUIRED == XFAM_REQUIRED and number & ~limit == 0
