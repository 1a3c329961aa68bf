"""TCB info and QE identity of the development PKI before they are signed, and the platform that they describe.

Source: Intel Provisioning Certification Service API v4 (TCB info version 3, QE identity version 2).
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from typing import Any, Final

from trainer.simulator.der import PlatformConfiguration, SgxExtension
from trainer.simulator.td_report_writer import QeReport

FMSPC: Final = bytes.fromhex("de7000000000")
PCE_ID: Final = bytes(2)
PCE_SVN: Final = 11
CPU_SVN: Final = bytes([3, 3, 2, 2, 4, 1, 0, 5]) + bytes(8)
TDX_SVN: Final = bytes([5, 0, 2]) + bytes(13)
MODULE_SVN: Final = 5


def tcb_info(
    date: str, evaluation_number: int, status: str, advisories: Sequence[str]
) -> dict[str, Any]:
    """Makes a TCB info with one level, the one that the platform has.

    Args:
        date: date of all levels.
        evaluation_number: `tcbEvaluationDataNumber`.
        status: TCB status of the level.
        advisories: advisory ids of the level.
    """
    level: dict[str, Any] = {
        "tcb": {
            "sgxtcbcomponents": [{"svn": svn} for svn in CPU_SVN],
            "pcesvn": PCE_SVN,
            "tdxtcbcomponents": [{"svn": svn} for svn in TDX_SVN],
        },
        "tcbDate": date,
        "tcbStatus": status,
    }
    if advisories:
        level["advisoryIDs"] = list(advisories)
    # Intel's TDX modules have a signer of zeros and no attributes; the TD report repeats both.
    module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    module_level = {"tcb": {"isvsvn": MODULE_SVN}, "tcbDate": date, "tcbStatus": "UpToDate"}
    return {
        "id": "TDX",
        "version": 3,
        "fmspc": FMSPC.hex().upper(),
        "pceId": PCE_ID.hex(),
        "tcbType": 0,
        "tcbEvaluationDataNumber": evaluation_number,
        "tdxModule": module,
        "tdxModuleIdentities": [{"id": "TDX_01", **module, "tcbLevels": [module_level]}],
        "tcbLevels": [level],
    }


def qe_identity(date: str, evaluation_number: int, status: str, report: QeReport) -> dict[str, Any]:
    """Makes the identity of the quoting enclave of `report`, with one level, the one that the enclave has."""
    return {
        "id": "TD_QE",
        "version": 2,
        "tcbEvaluationDataNumber": evaluation_number,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": report.mr_signer.hex().upper(),
        "isvprodid": report.isv_prod_id,
        "tcbLevels": [{"tcb": {"isvsvn": report.isv_svn}, "tcbDate": date, "tcbStatus": status}],
    }


def platform_extension(seed: bytes, configuration: PlatformConfiguration) -> SgxExtension:
    """Returns the SGX extension of the PCK certificate of the platform that is derived from `seed`."""
    return SgxExtension(
        ppid=hashlib.sha256(b"ppid" + seed).digest()[:16],
        cpu_svn=CPU_SVN,
        pce_svn=PCE_SVN,
        pce_id=PCE_ID,
        fmspc=FMSPC,
        platform_instance_id=hashlib.sha256(b"platform instance" + seed).digest()[:16],
        configuration=configuration,
    )


def rfc3339(time: int) -> str:
    """Formats seconds since 1970 as `YYYY-MM-DDThh:mm:ssZ`, the form of all dates in the documents."""
    return dt.datetime.fromtimestamp(time, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
