"""A development replacement of Intel's attestation PKI: it signs quotes and the collateral for their verification.

Certificates, CRLs, TCB info, QE identity and quote have Intel's formats, so the same verification code applies.
The root differs: no policy accepts it unless it names this root.

Source: Intel Provisioning Certification Service API v4 (collateral); `quote.py` names the sources of quotes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from trainer.simulator.certificates import (
    Authority,
    derive_p256_key,
    issue,
    raw_public_key,
    raw_signature,
    revocation_list,
)
from trainer.simulator.der import PlatformConfiguration
from trainer.simulator.documents import CPU_SVN, platform_extension, rfc3339
from trainer.simulator.documents import qe_identity as qe_identity_document
from trainer.simulator.documents import tcb_info as tcb_info_document
from trainer.simulator.quote import V4, V5, QuoteHeader, QuoteParts, assemble
from trainer.simulator.td_report_writer import QeReport, TdFields, TdFields15

__all__ = ["DevelopmentPki", "MutateCollateral", "PlatformConfiguration", "QeReport", "TdFields"]

MIN_SEED_BYTES: Final = 16

_DAY: Final = 86400
_HOUR: Final = 3600

_QE_AUTHENTICATION: Final = bytes(range(32))
_NO_FLAGS: Final = PlatformConfiguration()

MutateCollateral = Callable[[dict[str, Any], dict[str, Any]], None]
"""Changes TCB info and QE identity in place before they are signed, so that the signatures remain valid."""


class DevelopmentPki:
    """Root, PCK CA, PCK of one platform, TCB signer and attestation key, all derived from one seed.

    Args:
        seed: secret of at least 16 bytes; the same seed gives the same certificates, byte for byte.
        label: prefix of the common name of every certificate.
        evaluation_number: `tcbEvaluationDataNumber` of the collateral.
        configuration: platform flags in the PCK certificate.
        platform: fields of the PCK certificate's SGX extension that differ from the platform of the collateral.
        pck_end: end of the PCK certificate's validity in seconds since 1970; None means the end of 2049.

    Attributes:
        root_pem: the root certificate in PEM.
        root_der: the root certificate in DER, which a verifier must be configured to trust.
        ppid: the id of the platform in its certificate, 16 bytes.
        device_id: the device id in dstack: SHA-256 of the platform's PPID.
        qe_report: the quoting enclave's report, without the attestation key that it names in a quote.
    """

    def __init__(
        self,
        seed: bytes,
        *,
        label: str = "DEVELOPMENT",
        evaluation_number: int = 19,
        configuration: PlatformConfiguration = _NO_FLAGS,
        platform: Mapping[str, Any] = MappingProxyType({}),
        pck_end: int | None = None,
    ) -> None:
        if len(seed) < MIN_SEED_BYTES:
            raise ValueError(f"seed: expected at least {MIN_SEED_BYTES} bytes, got {len(seed)}")
        self._seed = seed
        self._label = label
        self._evaluation_number = evaluation_number
        self._root = self.issue_root("SGX Root CA")
        self.root_pem = self._root.pem
        self.root_der = self._root.certificate.public_bytes(Encoding.DER)
        self._platform_ca = self._issue("SGX PCK Platform CA", self._root, ca_path_length=0)
        extension = replace(platform_extension(seed, configuration), **platform)
        self.ppid = extension.ppid
        self.device_id = hashlib.sha256(self.ppid).digest()
        self._pck = self._issue(
            "SGX PCK Certificate", self._platform_ca, sgx_extension=extension.to_der(), end=pck_end
        )
        self._tcb_signer = self._issue("SGX TCB Signing", self._root)
        self._attestation_key = derive_p256_key(seed, "attestation-key")
        mr_enclave, mr_signer = (
            hashlib.sha256(f"confidential-trainer development PKI: TD_QE {part}".encode()).digest()
            for part in ("enclave", "signer")
        )
        self.qe_report = QeReport(
            cpu_svn=CPU_SVN,
            mr_enclave=mr_enclave,
            mr_signer=mr_signer,
            isv_prod_id=2,
            isv_svn=6,
        )

    def issue_root(self, name: str) -> Authority:
        """Issues a self-signed development CA of this seed, such as the key service's."""
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
        """Makes collateral for this PKI's quotes, in the JSON form of dcap-qvl's `QuoteCollateralV3`.

        Args:
            now: seconds since 1970; the documents are issued one hour earlier.
            status: TCB status of the platform, such as `OutOfDate`.
            advisories: advisory ids of that status.
            qe_status: TCB status of the quoting enclave.
            tcb_date: date of all TCB levels in seconds since 1970; None means one day before `now`.
            valid_seconds: how long after `now` TCB info, QE identity and CRLs are valid.
            revoked: entries of the CRLs, any of `pck` and `pck-ca`.
            mutate: changes TCB info and QE identity before they are signed.
        """
        date = rfc3339(now - _DAY if tcb_date is None else tcb_date)
        times = {"issueDate": rfc3339(now - _HOUR), "nextUpdate": rfc3339(now + valid_seconds)}
        tcb_info = tcb_info_document(date, self._evaluation_number, status, advisories) | times
        qe_identity = (
            qe_identity_document(date, self._evaluation_number, qe_status, self.qe_report) | times
        )
        if mutate is not None:
            mutate(tcb_info, qe_identity)
        return {
            **self._signed_document("tcb_info", tcb_info),
            **self._signed_document("qe_identity", qe_identity),
            **self._revocation_lists(now, now + valid_seconds, revoked),
        }

    def quote(
        self,
        td: TdFields,
        *,
        attestation_key: ec.EllipticCurvePrivateKey | None = None,
        qe_report: QeReport | None = None,
    ) -> bytes:
        """Makes a TDX quote over a TD report: version 4 for a report 1.0, version 5 for a report 1.5.

        Args:
            td: the report.
            attestation_key: signs instead of the attestation key of this PKI.
            qe_report: the quoting enclave's report, such as a `dataclasses.replace` of `self.qe_report`; its
                `report_data` is set here, to name the attestation key.
        """
        version = V5 if isinstance(td, TdFields15) else V4
        return self.sign(
            self.parts(td, version, attestation_key=attestation_key, qe_report=qe_report)
        )

    def parts(
        self,
        td: TdFields,
        version: int,
        *,
        attestation_key: ec.EllipticCurvePrivateKey | None = None,
        qe_report: QeReport | None = None,
    ) -> QuoteParts:
        """Returns the contents of a quote of `version` for `sign`; the other arguments are those of `quote`."""
        key = attestation_key or self._attestation_key
        # report_data of the enclave = SHA-256(attestation key ‖ authentication data) ‖ 32 zeros: Intel's PCK signs
        # the enclave's report, and thereby the attestation key.
        binding = hashlib.sha256(raw_public_key(key) + _QE_AUTHENTICATION).digest() + bytes(32)
        return QuoteParts(
            header=QuoteHeader(version),
            td=td,
            qe_report=replace(qe_report or self.qe_report, report_data=binding),
            qe_authentication=_QE_AUTHENTICATION,
            chain=self._pck.pem + self._platform_ca.pem + self._root.pem,
            attestation_key=key,
        )

    def sign(self, parts: QuoteParts) -> bytes:
        """Signs a quote of these parts without checking them, so that faults can be signed."""
        return assemble(parts, self._pck)

    def _issue(
        self,
        name: str,
        issuer: Authority | None,
        *,
        ca_path_length: int | None = None,
        sgx_extension: bytes | None = None,
        end: int | None = None,
    ) -> Authority:
        return issue(
            f"{self._label} {name}",
            derive_p256_key(self._seed, name),
            issuer,
            ca_path_length=ca_path_length,
            sgx_extension=sgx_extension,
            end=end,
        )

    def _signed_document(self, name: str, document: dict[str, Any]) -> dict[str, str]:
        # One string is signed and sent: verifiers hash its bytes.
        text = json.dumps(document, separators=(",", ":"))
        return {
            name: text,
            f"{name}_signature": raw_signature(self._tcb_signer.key, text.encode()).hex(),
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
