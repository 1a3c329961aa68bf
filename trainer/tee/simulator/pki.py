"""A development counterpart of Intel's attestation PKI: it signs quotes and the collateral that judges them.

Certificates, CRLs, TCB info, QE identity and quote have the same forms as Intel's, so the same verification code
runs over them. The root differs: no policy accepts it unless it names this very root.

Sources: Intel TDX DCAP Quote Generation Library and Quote Verification Library, version 0.9, appendix A.3 (quote
version 4); Intel Provisioning Certification Service API v4 (collateral).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import struct
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from trainer.tee.simulator.certificates import (
    Authority,
    derive_p256_key,
    issue,
    raw_public_key,
    raw_signature,
    revocation_list,
)
from trainer.tee.simulator.der import PlatformConfiguration, SgxExtension
from trainer.tee.simulator.report import QeReport, TdFields

__all__ = ["DevelopmentPki", "MutateCollateral", "PlatformConfiguration", "QeReport", "TdFields"]

MIN_SEED_BYTES: Final = 16

_INTEL_QE_VENDOR_ID: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")  # verifiers insist on it
_TDX_TEE_TYPE: Final = 0x81
_ECDSA_P256: Final = 2
_PCK_CHAIN_PEM: Final = 5
_QE_REPORT_CERTIFICATION: Final = 6

_DAY: Final = 86400
_HOUR: Final = 3600

_FMSPC: Final = bytes.fromhex("de7000000000")
_PCE_ID: Final = bytes(2)
_PCE_SVN: Final = 11
_CPU_SVN: Final = bytes([3, 3, 2, 2, 4, 1, 0, 5]) + bytes(8)
_TDX_SVN: Final = bytes([5, 0, 2]) + bytes(13)
_MODULE_SVN: Final = 5
_QE_AUTHENTICATION: Final = bytes(range(32))
_NO_FLAGS: Final = PlatformConfiguration()

MutateCollateral = Callable[[dict[str, Any], dict[str, Any]], None]
"""Changes TCB info and QE identity before they are signed: genuine collateral that says something else."""


class DevelopmentPki:
    """Root, PCK CA, one platform's PCK, TCB signer and attestation key, all functions of one seed.

    Args:
        seed: secret of at least 16 bytes; the same seed gives the same certificates, byte for byte.
        label: stands in front of every certificate's common name.
        evaluation_number: `tcbEvaluationDataNumber` of the collateral.
        configuration: platform flags in the PCK certificate.
    """

    def __init__(
        self,
        seed: bytes,
        *,
        label: str = "DEVELOPMENT",
        evaluation_number: int = 19,
        configuration: PlatformConfiguration = _NO_FLAGS,
    ) -> None:
        if len(seed) < MIN_SEED_BYTES:
            raise ValueError(f"seed: expected at least {MIN_SEED_BYTES} bytes, got {len(seed)}")
        self._seed = seed
        self._label = label
        self._evaluation_number = evaluation_number
        self._root = self.issue_root("SGX Root CA")
        self._platform_ca = self._issue("SGX PCK Platform CA", self._root, ca_path_length=0)
        self._platform = _platform_extension(seed, configuration)
        extension = self._platform.to_der()
        self._pck = self._issue("SGX PCK Certificate", self._platform_ca, sgx_extension=extension)
        self._tcb_signer = self._issue("SGX TCB Signing", self._root)
        self._attestation_key = derive_p256_key(seed, "attestation-key")
        self.qe_report = QeReport(
            cpu_svn=_CPU_SVN,
            mr_enclave=_constant("TD_QE enclave"),
            mr_signer=_constant("TD_QE signer"),
            isv_prod_id=2,
            isv_svn=6,
        )

    @property
    def root_der(self) -> bytes:
        """The root certificate in DER: what a verifier must be told to trust."""
        return self._root.certificate.public_bytes(Encoding.DER)

    @property
    def root_pem(self) -> str:
        """The root certificate in PEM."""
        return self._root.pem

    @property
    def device_id(self) -> bytes:
        """What dstack calls the device: SHA-256 of the platform's PPID."""
        return hashlib.sha256(self._platform.ppid).digest()

    def issue_root(self, name: str) -> Authority:
        """A self-signed development CA of this seed, such as the key service's."""
        return self._issue(name, None, ca_path_length=1)

    def collateral(
        self,
        now: int,
        *,
        status: str = "UpToDate",
        advisories: Sequence[str] = (),
        qe_status: str = "UpToDate",
        tcb_date: int | None = None,
        valid_seconds: int = 30 * _DAY,
        revoked: Collection[str] = (),
        mutate: MutateCollateral | None = None,
    ) -> dict[str, str]:
        """Collateral for this PKI's quotes, in the JSON form of dcap-qvl's `QuoteCollateralV3`.

        Args:
            now: seconds since 1970; the documents are issued one hour earlier.
            status: TCB status of the platform, such as `OutOfDate`.
            advisories: advisory ids that go with it.
            qe_status: TCB status of the quoting enclave.
            tcb_date: date of all TCB levels in seconds since 1970; one day before `now` where left out.
            valid_seconds: how long after `now` TCB info, QE identity and CRLs are valid.
            revoked: any of `pck` and `pck-ca`: what the CRLs list.
            mutate: changes TCB info and QE identity before they are signed.
        """
        date = _rfc3339(now - _DAY if tcb_date is None else tcb_date)
        times = {"issueDate": _rfc3339(now - _HOUR), "nextUpdate": _rfc3339(now + valid_seconds)}
        tcb_info = self._tcb_info(date, status, advisories) | times
        qe_identity = self._qe_identity(date, qe_status) | times
        if mutate is not None:
            mutate(tcb_info, qe_identity)
        return {
            **self._signed("tcb_info", tcb_info),
            **self._signed("qe_identity", qe_identity),
            **self._revocation_lists(now, now + valid_seconds, revoked),
        }

    def quote(
        self,
        td: TdFields,
        *,
        attestation_key: ec.EllipticCurvePrivateKey | None = None,
        qe_report: QeReport | None = None,
    ) -> bytes:
        """A TDX quote, version 4, over a TD report.

        Args:
            td: the report.
            attestation_key: signs in place of this PKI's own.
            qe_report: the quoting enclave's report, such as a `dataclasses.replace` of `self.qe_report`; its
                `report_data` is set here, to name the attestation key.
        """
        key = attestation_key or self._attestation_key
        header = struct.pack("<HHIHH", 4, _ECDSA_P256, _TDX_TEE_TYPE, 0, 0)
        signed = header + _INTEL_QE_VENDOR_ID + _constant("user data")[:16] + bytes(4) + td.pack()
        binding = hashlib.sha256(raw_public_key(key) + _QE_AUTHENTICATION).digest() + bytes(32)
        certification = self._certification(replace(qe_report or self.qe_report, report_data=binding))
        signature = (
            raw_signature(key, signed)
            + raw_public_key(key)
            + struct.pack("<HI", _QE_REPORT_CERTIFICATION, len(certification))
            + certification
        )
        return signed + struct.pack("<I", len(signature)) + signature

    def _issue(
        self,
        name: str,
        issuer: Authority | None,
        *,
        ca_path_length: int | None = None,
        sgx_extension: bytes | None = None,
    ) -> Authority:
        return issue(
            f"{self._label} {name}",
            derive_p256_key(self._seed, name),
            issuer,
            ca_path_length=ca_path_length,
            sgx_extension=sgx_extension,
        )

    def _certification(self, report: QeReport) -> bytes:
        packed = report.pack()
        chain = (self._pck.pem + self._platform_ca.pem + self._root.pem).encode()
        return (
            packed
            + self._pck.sign(packed)
            + struct.pack("<H", len(_QE_AUTHENTICATION))
            + _QE_AUTHENTICATION
            + struct.pack("<HI", _PCK_CHAIN_PEM, len(chain))
            + chain
        )

    def _signed(self, name: str, document: dict[str, Any]) -> dict[str, str]:
        text = json.dumps(document, separators=(",", ":"))  # signed and sent as one string, never parsed between
        return {
            name: text,
            f"{name}_signature": self._tcb_signer.sign(text.encode()).hex(),
            f"{name}_issuer_chain": self._tcb_signer.pem + self._root.pem,
        }

    def _revocation_lists(self, now: int, until: int, revoked: Collection[str]) -> dict[str, str]:
        cas = [self._platform_ca] if "pck-ca" in revoked else []
        leaves = [self._pck] if "pck" in revoked else []
        return {
            "pck_crl_issuer_chain": self._platform_ca.pem + self._root.pem,
            "root_ca_crl": revocation_list(self._root, now, until, cas).hex(),
            "pck_crl": revocation_list(self._platform_ca, now, until, leaves).hex(),
        }

    def _tcb_info(self, date: str, status: str, advisories: Sequence[str]) -> dict[str, Any]:
        level: dict[str, Any] = {
            "tcb": {
                "sgxtcbcomponents": [{"svn": svn} for svn in _CPU_SVN],
                "pcesvn": _PCE_SVN,
                "tdxtcbcomponents": [{"svn": svn} for svn in _TDX_SVN],
            },
            "tcbDate": date,
            "tcbStatus": status,
        }
        if advisories:
            level["advisoryIDs"] = list(advisories)
        module_level = {"tcb": {"isvsvn": _MODULE_SVN}, "tcbDate": date, "tcbStatus": "UpToDate"}
        return {
            "id": "TDX",
            "version": 3,
            "fmspc": _FMSPC.hex().upper(),
            "pceId": _PCE_ID.hex(),
            "tcbType": 0,
            "tcbEvaluationDataNumber": self._evaluation_number,
            "tdxModule": _unsigned_module(),
            "tdxModuleIdentities": [{"id": "TDX_01", **_unsigned_module(), "tcbLevels": [module_level]}],
            "tcbLevels": [level],
        }

    def _qe_identity(self, date: str, status: str) -> dict[str, Any]:
        report = self.qe_report
        return {
            "id": "TD_QE",
            "version": 2,
            "tcbEvaluationDataNumber": self._evaluation_number,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": report.mr_signer.hex().upper(),
            "isvprodid": report.isv_prod_id,
            "tcbLevels": [{"tcb": {"isvsvn": report.isv_svn}, "tcbDate": date, "tcbStatus": status}],
        }


def _platform_extension(seed: bytes, configuration: PlatformConfiguration) -> SgxExtension:
    return SgxExtension(
        ppid=hashlib.sha256(b"ppid" + seed).digest()[:16],
        cpu_svn=_CPU_SVN,
        pce_svn=_PCE_SVN,
        pce_id=_PCE_ID,
        fmspc=_FMSPC,
        platform_instance_id=hashlib.sha256(b"platform instance" + seed).digest()[:16],
        configuration=configuration,
    )


def _unsigned_module() -> dict[str, str]:
    """Intel's own TDX modules have an all-zero signer and no attributes."""
    return {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}


def _constant(what: str) -> bytes:
    return hashlib.sha256(f"confidential-trainer development PKI: {what}".encode()).digest()


def _rfc3339(time: int) -> str:
    return dt.datetime.fromtimestamp(time, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
