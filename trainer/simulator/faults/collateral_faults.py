"""Faults of the collateral: false values under a valid signature, and changes after signing."""

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


def _terms(name: str, code: str, description: str, **changes: Any) -> Fault:
    return Fault(name, code, description, FaultLayer.COLLATERAL_TERMS, lambda terms: terms | changes)


def _later(name: str, description: str, seconds: int) -> Fault:
    def change(terms: Document) -> Document:
        return terms | {"now": terms["now"] + seconds}

    return Fault(name, "collateral-validity", description, FaultLayer.COLLATERAL_TERMS, change)


def _edited(edit: Callable[[Document], None]) -> Callable[[Document], Document]:
    def change(document: Document) -> Document:
        edited = copy.deepcopy(document)
        edit(edited)
        return edited

    return change


def _tcb(name: str, code: str, description: str, edit: Callable[[Document], None]) -> Fault:
    return Fault(f"tcb-info-{name}", code, description, FaultLayer.TCB_INFO, _edited(edit))


def _qe(name: str, code: str, description: str, edit: Callable[[Document], None]) -> Fault:
    return Fault(f"qe-identity-{name}", code, description, FaultLayer.QE_IDENTITY, _edited(edit))


def _set(**changes: Any) -> Callable[[Document], None]:
    return lambda document: document.update(changes)


def _module(**changes: Any) -> Callable[[Document], None]:
    return lambda document: document["tdxModuleIdentities"][0].update(changes)


def _level(**changes: Any) -> Callable[[Document], None]:
    return lambda document: document["tcbLevels"][0].update(changes)


def _level_tcb(**changes: Any) -> Callable[[Document], None]:
    return lambda document: document["tcbLevels"][0]["tcb"].update(changes)


def _component(kind: str, index: int) -> Callable[[Document], None]:
    return lambda document: document["tcbLevels"][0]["tcb"][kind][index].update(svn=99)


def _replaced(name: str, key: str, code: str, description: str, change: Callable[[str], Any]) -> Fault:
    """Change one part of the collateral after it was signed."""
    return Fault(name, code, description, FaultLayer.COLLATERAL, lambda made: made | {key: change(made[key])})


def _bit(hexadecimal: str) -> str:
    data = bytearray.fromhex(hexadecimal)
    data[len(data) // 2] ^= 1
    return data.hex()


def _foreign_chain(_chain: str) -> str:
    return DevelopmentPki(b"the seed of another development root").collateral(0)["tcb_info_issuer_chain"]


def _without(key: str) -> Fault:
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
        _terms(f"tcb-status-{status}".lower(), "tcb-status", f"a platform that is {status}", status=status)
        for status in _PLATFORM_STATUSES
    ),
    _terms("qe-status-outofdate", "tcb-status", "a quoting enclave that is OutOfDate", qe_status="OutOfDate"),
    _terms("qe-status-revoked", "tcb-status", "a quoting enclave that is Revoked", qe_status="Revoked"),
    _terms("advisory", "tcb-advisories", "a platform open to INTEL-SA-00001", advisories=("INTEL-SA-00001",)),
    _terms("pck-revoked", "platform-certificate", "a revoked platform", revoked=("pck",)),
    _terms("pck-ca-revoked", "platform-certificate", "a revoked platform CA", revoked=("pck-ca",)),
    _later("collateral-expired", "collateral that ran out yesterday", -31 * _DAY),
    _later("collateral-from-the-future", "collateral of tomorrow", _DAY),
    Fault(
        "evaluation-number",
        "tcb-evaluation-number",
        "collateral of an early evaluation",
        FaultLayer.PKI,
        lambda given: given | {"evaluation_number": 18},
    ),
)

_TCB_INFO: Final = (
    _tcb("id", "tcb-level", "TCB info for SGX", _set(id="SGX")),
    _tcb("version", "tcb-level", "TCB info of version 1", _set(version=1)),
    _tcb("fmspc", "tcb-level", "TCB info of another platform model", _set(fmspc="00" * 6)),
    _tcb("pce-id", "tcb-level", "TCB info of another provisioning enclave", _set(pceId="0001")),
    _tcb("issue-date", "collateral-validity", "TCB info not yet issued", _set(issueDate=_FAR_AWAY)),
    _tcb("next-update", "collateral-validity", "TCB info that ran out", _set(nextUpdate=_LONG_AGO)),
    _tcb("evaluation", "tcb-evaluation-number", "an early evaluation", _set(tcbEvaluationDataNumber=18)),
    _tcb("no-levels", "tcb-level", "TCB info without levels", _set(tcbLevels=[])),
    _tcb("pce-svn", "tcb-level", "levels above the provisioning enclave", _level_tcb(pcesvn=99)),
    _tcb("cpu-svn", "tcb-level", "levels above the microcode", _component("sgxtcbcomponents", 0)),
    _tcb("tdx-svn", "tcb-level", "levels above the late microcode", _component("tdxtcbcomponents", 2)),
    _tcb("level-status", "tcb-status", "a level that is OutOfDate", _level(tcbStatus="OutOfDate")),
    _tcb("no-modules", "tdx-module", "no TDX module named", _set(tdxModuleIdentities=[])),
    _tcb("module-id", "tdx-module", "another generation of module", _module(id="TDX_09")),
    _tcb("module-signer", "tdx-module", "another signer of modules", _module(mrsigner="11" * 48)),
    _tcb("module-attributes", "tdx-module", "other module attributes", _module(attributes="01" + "00" * 7)),
    _tcb("module-no-levels", "tdx-module", "a module without levels", _module(tcbLevels=[])),
    _tcb(
        "module-status",
        "tcb-status",
        "a module that is OutOfDate",
        lambda tcb: tcb["tdxModuleIdentities"][0]["tcbLevels"][0].update(tcbStatus="OutOfDate"),
    ),
)

_QE_IDENTITY: Final = (
    _qe("id", "quoting-enclave", "identity of an SGX quoting enclave", _set(id="QE")),
    _qe("version", "quoting-enclave", "QE identity of version 9", _set(version=9)),
    _qe("misc-select", "quoting-enclave", "other enclave state", _set(miscselect="00000001")),
    _qe("attributes", "quoting-enclave", "other enclave attributes", _set(attributes="13" + "00" * 15)),
    _qe("signer", "quoting-enclave", "another enclave signer", _set(mrsigner="00" * 32)),
    _qe("product", "quoting-enclave", "another enclave", _set(isvprodid=9)),
    _qe("no-levels", "quoting-enclave", "QE identity without levels", _set(tcbLevels=[])),
    _qe("level", "quoting-enclave", "levels above the enclave", _level_tcb(isvsvn=99)),
    _qe("issue-date", "collateral-validity", "QE identity not yet issued", _set(issueDate=_FAR_AWAY)),
    _qe("next-update", "collateral-validity", "QE identity that ran out", _set(nextUpdate=_LONG_AGO)),
    _qe("evaluation", "tcb-evaluation-number", "an early evaluation", _set(tcbEvaluationDataNumber=18)),
)

_SIGNED: Final = {
    "tcb_info_signature": "collateral-signature",
    "qe_identity_signature": "collateral-signature",
    "pck_crl": "platform-certificate",
    "root_ca_crl": "collateral-signature",
}
"""Where one bit is changed. Of a false signature on the platform CA's CRL, dcap-qvl only says that the platform's
chain does not verify; the bit of the root's CRL is one without which it cannot be read."""

_FINISHED: Final = (
    *(
        _replaced(
            f"forged-{name.replace('_', '-')}",
            name,
            "collateral-signature",
            f"{name} changed after it was signed",
            lambda text: text.replace("UpToDate", "Revoked "),
        )
        for name in ("tcb_info", "qe_identity")
    ),
    *(
        _replaced(
            f"forged-{name.replace('_', '-')}",
            name,
            code,
            f"one bit of {name} changed",
            _bit,
        )
        for name, code in _SIGNED.items()
    ),
    *(
        _replaced(
            f"foreign-{name.replace('_', '-')}",
            name,
            "root-of-trust",
            f"{name} of another root",
            _foreign_chain,
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
    *(_without(key) for key in ("tcb_info", "qe_identity", "pck_crl", "root_ca_crl", "tcb_info_signature")),
)

COLLATERAL_FAULTS: Final = (*_TERMS, *_TCB_INFO, *_QE_IDENTITY, *_FINISHED)
