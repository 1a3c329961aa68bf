"""Faults of the TD report with a valid signature: a genuine platform that runs something else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

from trainer.attestation.tdx.td_report import ATTRIBUTE_NAMES, SEPT_VE_DISABLE_BIT, XFAM_KNOWN
from trainer.simulator.fault import Fault, FaultLayer
from trainer.simulator.quote import V5, QuoteParts
from trainer.simulator.td_report_writer import TdFields15

_DEBUG_BIT: Final = 0
_XFAM_NAMES: Final = {
    0: "x87",
    1: "sse",
    8: "processor-trace",
    11: "user-shadow-stack",
    12: "supervisor-shadow-stack",
    14: "user-interrupts",
    15: "last-branch-records",
}
_ONE: Final = b"\1" + bytes(47)


def _flip_bit(bit: int) -> Callable[[bytes], bytes]:
    """Returns the change that flips one bit of a little-endian number; bit 0 is the least significant."""
    return lambda value: (int.from_bytes(value, "little") ^ 1 << bit).to_bytes(len(value), "little")


def _td_fault(
    code: str, name: str, description: str, field: str, change: Callable[[bytes], bytes]
) -> Fault:
    return Fault(
        FaultLayer.TD,
        name,
        code,
        description,
        lambda td: dataclasses.replace(td, **{field: change(getattr(td, field))}),
    )


def _add_service_td(parts: QuoteParts) -> QuoteParts:
    """Returns parts with a TD report 1.5 that names a service TD; quotes of version 4 have no field for it."""
    fields: dict[str, Any] = {
        field.name: getattr(parts.td, field.name) for field in dataclasses.fields(parts.td)
    }
    td = TdFields15(**fields | {"mr_service_td": _ONE})
    return dataclasses.replace(parts, td=td, header=dataclasses.replace(parts.header, version=V5))


def _attribute_fault(bit: int) -> Fault:
    code = "td-debug" if bit == _DEBUG_BIT else "td-attributes"
    name = ATTRIBUTE_NAMES.get(bit, f"bit {bit:02}").lower().replace("_", "-").replace(" ", "-")
    what = "without SEPT_VE_DISABLE" if bit == SEPT_VE_DISABLE_BIT else f"with attribute bit {bit}"
    return _td_fault(code, f"td-attributes-{name}", f"a TD {what}", "td_attributes", _flip_bit(bit))


_XFAM_BITS: Final = tuple(
    bit for bit in range(64) if bit in _XFAM_NAMES or not XFAM_KNOWN >> bit & 1
)
"""The bits that a production TD must set or must not set; the other bits are free."""

_MODULE: Final = (
    _td_fault(
        "tdx-module",
        "module-version",
        "a TDX module older than any known",
        "tee_tcb_svn",
        lambda svn: b"\4" + svn[1:],
    ),
    _td_fault(
        "tdx-module",
        "module-generation",
        "a TDX module of an unknown generation",
        "tee_tcb_svn",
        lambda svn: svn[:1] + b"\7" + svn[2:],
    ),
    _td_fault(
        "tcb-level",
        "module-tcb",
        "a late-microcode version below every TCB level",
        "tee_tcb_svn",
        lambda svn: svn[:2] + b"\0" + svn[3:],
    ),
    _td_fault(
        "mr-seam",
        "mr-seam",
        "a TDX module that the policy does not list",
        "mr_seam",
        lambda _: _ONE,
    ),
    _td_fault(
        "tdx-module",
        "mr-signer-seam",
        "a TDX module of another signer",
        "mr_signer_seam",
        lambda _: _ONE,
    ),
    _td_fault(
        "tdx-module",
        "seam-attributes",
        "a TDX module in debug mode",
        "seam_attributes",
        _flip_bit(0),
    ),
)

_REGISTERS: Final = (
    *(
        _td_fault("os-measurements", name, f"another {name.upper()}", name, _flip_bit(7))
        for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2")
    ),
    _td_fault(
        "rtmr3-replay",
        "rtmr3",
        "an RTMR3 that the event log does not lead to",
        "rtmr3",
        _flip_bit(7),
    ),
    _td_fault("mr-owner", "mr-owner", "a VM with an owner", "mr_owner", lambda _: _ONE),
    _td_fault(
        "mr-owner-config",
        "mr-owner-config",
        "an owner's settings",
        "mr_owner_config",
        lambda _: _ONE,
    ),
    _td_fault("report-data", "report-data", "another report_data", "report_data", _flip_bit(0)),
    _td_fault(
        "report-data",
        "report-data-end",
        "report_data right but for its last byte",
        "report_data",
        _flip_bit(511),
    ),
    Fault(
        FaultLayer.PARTS,
        "service-td",
        "service-td",
        "a service TD with power over the VM",
        _add_service_td,
    ),
)

_CONFIG_ID: Final = (
    _td_fault(
        "mr-config-id",
        "config-id-compose",
        "MRCONFIGID of form 01 for another compose hash",
        "mr_config_id",
        lambda _: b"\1" + b"\7" * 32 + bytes(15),
    ),
    _td_fault(
        "mr-config-id",
        "config-id-binding",
        "MRCONFIGID of form 02 for another app or key service",
        "mr_config_id",
        lambda _: b"\2" + b"\7" * 32 + bytes(15),
    ),
    _td_fault(
        "mr-config-id",
        "config-id-document",
        "MRCONFIGID of form 03 for another configuration",
        "mr_config_id",
        lambda _: b"\3" + b"\7" * 32 + bytes(15),
    ),
    _td_fault(
        "mr-config-id",
        "config-id-tail",
        "MRCONFIGID of form 01 with more after the compose hash",
        "mr_config_id",
        lambda value: value[:-1] + b"\1",
    ),
    _td_fault(
        "mr-config-id",
        "config-id-form",
        "MRCONFIGID of a form that does not exist",
        "mr_config_id",
        lambda value: b"\x04" + value[1:],
    ),
    _td_fault(
        "mr-config-id",
        "config-id-zero-tail",
        "MRCONFIGID unset but for its last byte",
        "mr_config_id",
        lambda _: bytes(47) + b"\1",
    ),
)

TD_FAULTS: Final = (
    *_MODULE,
    *(_attribute_fault(bit) for bit in range(64)),
    *(
        _td_fault(
            "td-xfam",
            f"xfam-{_XFAM_NAMES.get(bit, f'bit-{bit:02}')}",
            f"a TD {'without required' if XFAM_KNOWN >> bit & 1 else 'with unknown'} CPU state {bit}",
            "xfam",
            _flip_bit(bit),
        )
        for bit in _XFAM_BITS
    ),
    *_REGISTERS,
    *_CONFIG_ID,
)
