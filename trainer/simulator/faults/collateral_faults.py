"""Faults of the collateral: false values with a valid signature, and changes after the signature.

Key names and values are those of Intel's Provisioning Certification Service API v4.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

from trainer.simulator.documents import rfc3339
from trainer.simulator.fault import Fault, FaultLayer, flip_middle_bit
from trainer.simulator.pki import DevelopmentPki

_DAY: Final = 86400
_LONG_AGO: Final = rfc3339(1_577_836_800)
_FAR_AWAY: Final = rfc3339(2_493_072_000)

Document = dict[str, Any]


def _terms_fault(name: str, code: str, description: str, **changes: Any) -> Fault:
    """Returns a fault that changes arguments of `DevelopmentPki.collateral`."""
    return Fault(
        FaultLayer.COLLATERAL_TERMS, name, code, description, lambda terms: terms | changes
    )


def _issue_time_fault(name: str, description: str, seconds: int) -> Fault:
    return Fault(
        FaultLayer.COLLATERAL_TERMS,
        name,
        "collateral-validity",
        description,
        lambda terms: terms | {"now": terms["now"] + seconds},
    )


def _update(*path: str | int, **changes: Any) -> Callable[[Document], Document]:
    """Returns the change of fields of the object at `path` in a document, the document itself without one."""

    def change(document: Document) -> Document:
        edited = copy.deepcopy(document)  # a fault does not modify its argument
        target: Any = edited
        for key in path:
            target = target[key]
        target.update(changes)
        return edited

    return change


def _replacement_fault(
    name: str, key: str, code: str, description: str, change: Callable[[str], Any]
) -> Fault:
    """Returns a fault that changes one part of the collateral after it was signed."""
    return Fault(
        FaultLayer.COLLATERAL, name, code, description, lambda made: made | {key: change(made[key])}
    )


def _omission_fault(key: str) -> Fault:
    name = f"collateral-without-{key.replace('_', '-')}"
    return Fault(
        FaultLayer.COLLATERAL,
        name,
        "collateral-format",
        f"no {key} in the collateral",
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
        _terms_fault(
            f"tcb-status-{status}".lower(),
            "tcb-status",
            f"a platform that is {status}",
            status=status,
        )
        for status in _PLATFORM_STATUSES
    ),
    _terms_fault(
        "qe-status-outofdate",
        "tcb-status",
        "a quoting enclave that is OutOfDate",
        qe_status="OutOfDate",
    ),
    _terms_fault(
        "qe-status-revoked", "tcb-status", "a quoting enclave that is Revoked", qe_status="Revoked"
    ),
    _terms_fault(
        "advisory",
        "tcb-advisories",
        "a platform open to INTEL-SA-00001",
        advisories=("INTEL-SA-00001",),
    ),
    _terms_fault("pck-revoked", "platform-certificate", "a revoked platform", revoked=("pck",)),
    _terms_fault(
        "pck-ca-revoked", "platform-certificate", "a revoked platform CA", revoked=("pck-ca",)
    ),
    _issue_time_fault("collateral-expired", "collateral that ran out yesterday", -31 * _DAY),
    _issue_time_fault("collateral-from-the-future", "collateral of tomorrow", _DAY),
    Fault(
        FaultLayer.PKI,
        "evaluation-number",
        "tcb-evaluation-number",
        "collateral of an early evaluation",
        lambda given: given | {"evaluation_number": 18},
    ),
)

_TCB_INFO: Final = tuple(
    Fault(FaultLayer.TCB_INFO, f"tcb-info-{name}", code, description, change)
    for name, code, description, change in (
        ("id", "tcb-level", "TCB info for SGX", _update(id="SGX")),
        ("version", "tcb-level", "TCB info of version 1", _update(version=1)),
        ("fmspc", "tcb-level", "TCB info of another platform model", _update(fmspc="00" * 6)),
        ("pce-id", "tcb-level", "TCB info of another provisioning enclave", _update(pceId="0001")),
        (
            "issue-date",
            "collateral-validity",
            "TCB info not yet issued",
            _update(issueDate=_FAR_AWAY),
        ),
        (
            "next-update",
            "collateral-validity",
            "TCB info that ran out",
            _update(nextUpdate=_LONG_AGO),
        ),
        (
            "evaluation",
            "tcb-evaluation-number",
            "an early evaluation",
            _update(tcbEvaluationDataNumber=18),
        ),
        ("no-levels", "tcb-level", "TCB info without levels", _update(tcbLevels=[])),
        (
            "pce-svn",
            "tcb-level",
            "levels above the provisioning enclave",
            _update("tcbLevels", 0, "tcb", pcesvn=99),
        ),
        (
            "cpu-svn",
            "tcb-level",
            "levels above the microcode",
            _update("tcbLevels", 0, "tcb", "sgxtcbcomponents", 0, svn=99),
        ),
        (
            "tdx-svn",
            "tcb-level",
            "levels above the late microcode",
            _update("tcbLevels", 0, "tcb", "tdxtcbcomponents", 2, svn=99),
        ),
        (
            "level-status",
            "tcb-status",
            "a level that is OutOfDate",
            _update("tcbLevels", 0, tcbStatus="OutOfDate"),
        ),
        ("no-modules", "tdx-module", "no TDX module named", _update(tdxModuleIdentities=[])),
        (
            "module-id",
            "tdx-module",
            "another generation of module",
            _update("tdxModuleIdentities", 0, id="TDX_09"),
        ),
        (
            "module-signer",
            "tdx-module",
            "another signer of modules",
            _update("tdxModuleIdentities", 0, mrsigner="11" * 48),
        ),
        (
            "module-attributes",
            "tdx-module",
            "other module attributes",
            _update("tdxModuleIdentities", 0, attributes="01" + "00" * 7),
        ),
        (
            "module-no-levels",
            "tdx-module",
            "a module without levels",
            _update("tdxModuleIdentities", 0, tcbLevels=[]),
        ),
        (
            "module-status",
            "tcb-status",
            "a module that is OutOfDate",
            _update("tdxModuleIdentities", 0, "tcbLevels", 0, tcbStatus="OutOfDate"),
        ),
    )
)

_QE_IDENTITY: Final = tuple(
    Fault(FaultLayer.QE_IDENTITY, f"qe-identity-{name}", code, description, change)
    for name, code, description, change in (
        ("id", "quoting-enclave", "identity of an SGX quoting enclave", _update(id="QE")),
        ("version", "quoting-enclave", "QE identity of version 9", _update(version=9)),
        ("misc-select", "quoting-enclave", "other enclave state", _update(miscselect="00000001")),
        (
            "attributes",
            "quoting-enclave",
            "other enclave attributes",
            _update(attributes="13" + "00" * 15),
        ),
        ("signer", "quoting-enclave", "another enclave signer", _update(mrsigner="00" * 32)),
        ("product", "quoting-enclave", "another enclave", _update(isvprodid=9)),
        ("no-levels", "quoting-enclave", "QE identity without levels", _update(tcbLevels=[])),
        (
            "level",
            "quoting-enclave",
            "levels above the enclave",
            _update("tcbLevels", 0, "tcb", isvsvn=99),
        ),
        (
            "issue-date",
            "collateral-validity",
            "QE identity not yet issued",
            _update(issueDate=_FAR_AWAY),
        ),
        (
            "next-update",
            "collateral-validity",
            "QE identity that ran out",
            _update(nextUpdate=_LONG_AGO),
        ),
        (
            "evaluation",
            "tcb-evaluation-number",
            "an early evaluation",
            _update(tcbEvaluationDataNumber=18),
        ),
    )
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
            lambda text: flip_middle_bit(bytes.fromhex(text)).hex(),
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
        FaultLayer.COLLATERAL,
        "crl-of-another-ca",
        "platform-certificate",
        "the root's CRL in place of the platform CA's",
        lambda made: made | {"pck_crl": made["root_ca_crl"]},
    ),
    *(
        _omission_fault(key)
        for key in ("tcb_info", "qe_identity", "pck_crl", "root_ca_crl", "tcb_info_signature")
    ),
)

COLLATERAL_FAULTS: Final = (*_TERMS, *_TCB_INFO, *_QE_IDENTITY, *_FINISHED)
