"""Faults of the collateral: false values with a valid signature, and changes after the signature.

Key names and values are those of Intel's Provisioning Certification Service API v4.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

from trainer.simulator.documents import rfc3339
from trainer.simulator.fault import Fault, FaultLayer
from trainer.simulator.pki import DevelopmentPki

_DAY: Final = 86400
_LONG_AGO: Final = rfc3339(1_577_836_800)
_FAR_AWAY: Final = rfc3339(2_493_072_000)

Document = dict[str, Any]


def _terms_fault(name: str, code: str, description: str, **changes: Any) -> Fault:
    """Returns a fault that changes arguments of `DevelopmentPki.collateral`."""
    return Fault(name, code, description, FaultLayer.COLLATERAL_TERMS, lambda terms: terms | changes)


def _issue_time_fault(name: str, description: str, seconds: int) -> Fault:
    return Fault(
        name,
        "collateral-validity",
        description,
        FaultLayer.COLLATERAL_TERMS,
        lambda terms: terms | {"now": terms["now"] + seconds},
    )


def _edit_copy(edit: Callable[[Document], None]) -> Callable[[Document], Document]:
    """Returns a change that applies `edit` to a deep copy: a fault must not modify its argument."""

    def change(document: Document) -> Document:
        edited = copy.deepcopy(document)
        edit(edited)
        return edited

    return change


def _tcb_info_fault(name: str, code: str, description: str, edit: Callable[[Document], None]) -> Fault:
    return Fault(f"tcb-info-{name}", code, description, FaultLayer.TCB_INFO, _edit_copy(edit))


def _qe_identity_fault(name: str, code: str, description: str, edit: Callable[[Document], None]) -> Fault:
    return Fault(f"qe-identity-{name}", code, description, FaultLayer.QE_IDENTITY, _edit_copy(edit))


def _set_fields(**changes: Any) -> Callable[[Document], None]:
    return lambda document: document.update(changes)


def _set_module_fields(**changes: Any) -> Callable[[Document], None]:
    return lambda document: document["tdxModuleIdentities"][0].update(changes)


def _set_level_svns(**changes: Any) -> Callable[[Document], None]:
    return lambda document: document["tcbLevels"][0]["tcb"].update(changes)


def _raise_component_svn(kind: str, index: int) -> Callable[[Document], None]:
    return lambda document: document["tcbLevels"][0]["tcb"][kind][index].update(svn=99)


def _replacement_fault(name: str, key: str, code: str, description: str, change: Callable[[str], Any]) -> Fault:
    """Returns a fault that changes one part of the collateral after it was signed."""
    return Fault(name, code, description, FaultLayer.COLLATERAL, lambda made: made | {key: change(made[key])})


def _flip_middle_bit(hexadecimal: str) -> str:
    data = bytearray.fromhex(hexadecimal)
    data[len(data) // 2] ^= 1
    return data.hex()


def _omission_fault(key: str) -> Fault:
    name = f"collateral-without-{key.replace('_', '-')}"
    return Fault(
        name,
        "collateral-format",
        f"no {key} in the collateral",
        FaultLayer.COLLATERAL,
        lambda made: {other: text for other, text in made.items() if other != key},
    )


_PLATFORM_STATUSES: Final = (
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "SWHardeningNeeded",
    "Revoked",
)

_TERMS: Final = (
    *(
        _terms_fault(f"tcb-status-{status}".lower(), "tcb-status", f"a platform that is {status}", status=status)
        for status in _PLATFORM_STATUSES
    ),
    _terms_fault(
        "qe-status-outofdate", "tcb-status", "a quoting enclave that is OutOfDate", qe_status="OutOfDate"
    ),
    _terms_fault("qe-status-revoked", "tcb-status", "a quoting enclave that is Revoked", qe_status="Revoked"),
    _terms_fault(
        "advisory", "tcb-advisories", "a platform open to INTEL-SA-00001", advisories=("INTEL-SA-00001",)
    ),
    _terms_fault("pck-revoked", "platform-certificate", "a revoked platform", revoked=("pck",)),
    _terms_fault("pck-ca-revoked", "platform-certificate", "a revoked platform CA", revoked=("pck-ca",)),
    _issue_time_fault("collateral-expired", "collateral that ran out yesterday", -31 * _DAY),
    _issue_time_fault("collateral-from-the-future", "collateral of tomorrow", _DAY),
    Fault(
        "evaluation-number",
        "tcb-evaluation-number",
        "collateral of an early evaluation",
        FaultLayer.PKI,
        lambda given: given | {"evaluation_number": 18},
    ),
)

_TCB_INFO: Final = (
    _tcb_info_fault("id", "tcb-level", "TCB info for SGX", _set_fields(id="SGX")),
    _tcb_info_fault("version", "tcb-level", "TCB info of version 1", _set_fields(version=1)),
    _tcb_info_fault("fmspc", "tcb-level", "TCB info of another platform model", _set_fields(fmspc="00" * 6)),
    _tcb_info_fault("pce-id", "tcb-level", "TCB info of another provisioning enclave", _set_fields(pceId="0001")),
    _tcb_info_fault(
        "issue-date", "collateral-validity", "TCB info not yet issued", _set_fields(issueDate=_FAR_AWAY)
    ),
    _tcb_info_fault(
        "next-update", "collateral-validity", "TCB info that ran out", _set_fields(nextUpdate=_LONG_AGO)
    ),
    _tcb_info_fault(
        "evaluation", "tcb-evaluation-number", "an early evaluation", _set_fields(tcbEvaluationDataNumber=18)
    ),
    _tcb_info_fault("no-levels", "tcb-level", "TCB info without levels", _set_fields(tcbLevels=[])),
    _tcb_info_fault("pce-svn", "tcb-level", "levels above the provisioning enclave", _set_level_svns(pcesvn=99)),
    _tcb_info_fault(
        "cpu-svn", "tcb-level", "levels above the microcode", _raise_component_svn("sgxtcbcomponents", 0)
    ),
    _tcb_info_fault(
        "tdx-svn", "tcb-level", "levels above the late microcode", _raise_component_svn("tdxtcbcomponents", 2)
    ),
    _tcb_info_fault(
        "level-status",
        "tcb-status",
        "a level that is OutOfDate",
        lambda tcb: tcb["tcbLevels"][0].update(tcbStatus="OutOfDate"),
    ),
    _tcb_info_fault("no-modules", "tdx-module", "no TDX module named", _set_fields(tdxModuleIdentities=[])),
    _tcb_info_fault("module-id", "tdx-module", "another generation of module", _set_module_fields(id="TDX_09")),
    _tcb_info_fault(
        "module-signer", "tdx-module", "another signer of modules", _set_module_fields(mrsigner="11" * 48)
    ),
    _tcb_info_fault(
        "module-attributes",
        "tdx-module",
        "other module attributes",
        _set_module_fields(attributes="01" + "00" * 7),
    ),
    _tcb_info_fault("module-no-levels", "tdx-module", "a module without levels", _set_module_fields(tcbLevels=[])),
    _tcb_info_fault(
        "module-status",
        "tcb-status",
        "a module that is OutOfDate",
        lambda tcb: tcb["tdxModuleIdentities"][0]["tcbLevels"][0].update(tcbStatus="OutOfDate"),
    ),
)

_QE_IDENTITY: Final = (
    _qe_identity_fault("id", "quoting-enclave", "identity of an SGX quoting enclave", _set_fields(id="QE")),
    _qe_identity_fault("version", "quoting-enclave", "QE identity of version 9", _set_fields(version=9)),
    _qe_identity_fault(
        "misc-select", "quoting-enclave", "other enclave state", _set_fields(miscselect="00000001")
    ),
    _qe_identity_fault(
        "attributes", "quoting-enclave", "other enclave attributes", _set_fields(attributes="13" + "00" * 15)
    ),
    _qe_identity_fault("signer", "quoting-enclave", "another enclave signer", _set_fields(mrsigner="00" * 32)),
    _qe_identity_fault("product", "quoting-enclave", "another enclave", _set_fields(isvprodid=9)),
    _qe_identity_fault("no-levels", "quoting-enclave", "QE identity without levels", _set_fields(tcbLevels=[])),
    _qe_identity_fault("level", "quoting-enclave", "levels above the enclave", _set_level_svns(isvsvn=99)),
    _qe_identity_fault(
        "issue-date", "collateral-validity", "QE identity not yet issued", _set_fields(issueDate=_FAR_AWAY)
    ),
    _qe_identity_fault(
        "next-update", "collateral-validity", "QE identity that ran out", _set_fields(nextUpdate=_LONG_AGO)
    ),
    _qe_identity_fault(
        "evaluation", "tcb-evaluation-number", "an early evaluation", _set_fields(tcbEvaluationDataNumber=18)
    ),
)

_SIGNED: Final = {
    "tcb_info_signature": "collateral-signature",
    "qe_identity_signature": "collateral-signature",
    "pck_crl": "platform-certificate",
    "root_ca_crl": "collateral-signature",
}
"""Part in which one bit is changed → check that must fail.

For a false signature on the platform CA's CRL, dcap-qvl reports only that the platform's chain does not verify.
The bit in the root's CRL makes that CRL unreadable.
"""

_FINISHED: Final = (
    *(
        _replacement_fault(
            f"forged-{name.replace('_', '-')}",
            name,
            "collateral-signature",
            f"{name} changed after it was signed",
            lambda text: text.replace("UpToDate", "Revoked "),
        )
        for name in ("tcb_info", "qe_identity")
    ),
    *(
        _replacement_fault(
            f"forged-{name.replace('_', '-')}",
            name,
            code,
            f"one bit of {name} changed",
            _flip_middle_bit,
        )
        for name, code in _SIGNED.items()
    ),
    *(
        _replacement_fault(
            f"foreign-{name.replace('_', '-')}",
            name,
            "root-of-trust",
            f"{name} of another root",
            lambda _: DevelopmentPki(b"the seed of another development root").collateral(0)[
                "tcb_info_issuer_chain"
            ],
        )
        for name in ("tcb_info_issuer_chain", "qe_identity_issuer_chain", "pck_crl_issuer_chain")
    ),
    Fault(
        "crl-of-another-ca",
        "platform-certificate",
        "the root's CRL in place of the platform CA's",
        FaultLayer.COLLATERAL,
        lambda made: made | {"pck_crl": made["root_ca_crl"]},
    ),
    *(_omission_fault(key) for key in ("tcb_info", "qe_identity", "pck_crl", "root_ca_crl", "tcb_info_signature")),
)

COLLATERAL_FAULTS: Final = (*_TERMS, *_TCB_INFO, *_QE_IDENTITY, *_FINISHED)
