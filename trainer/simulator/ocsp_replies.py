"""OCSP responses about GPU certificates, from a responder that the development authority certified (RFC 6960)."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from trainer.simulator.gpu_evidence import NOW, GpuEvidenceMaker

OCSP_SIGNING: Final = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), False)


def load_certificate(certificate: Any, issuer: Any) -> x509.Certificate:
    """Returns `certificate` as `issuer` issues it."""
    return x509.load_pem_x509_certificate(certificate.issued_by(issuer).encode())


def utc_time(seconds: int) -> dt.datetime:
    """Returns seconds since 1970 as a time in UTC."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


@dataclass(frozen=True)
class OcspReply:
    """One OCSP response to be made: everything that a test may change.

    It gives `status` for `subject`, which `issuer` issued. It is signed by `responder`, certified by `certifier`,
    and carries that certificate, or `attached` instead. Without a responder the issuer signs.
    """

    subject: Any
    issuer: Any
    responder: Any
    certifier: Any
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD
    begin: int = NOW - 100
    end: int | None = NOW + 1000
    hash_algorithm: hashes.HashAlgorithm = field(default_factory=hashes.SHA384)
    signature_hash: hashes.HashAlgorithm = field(default_factory=hashes.SHA384)
    encoding: ocsp.OCSPResponderEncoding = ocsp.OCSPResponderEncoding.NAME
    attached: Any = None
    shown: bool = True

    def der(self) -> bytes:
        """Returns the signed response, in DER."""
        issuer, revoked = (
            load_certificate(self.issuer, self.issuer),
            self.status is ocsp.OCSPCertStatus.REVOKED,
        )
        builder = ocsp.OCSPResponseBuilder().add_response(
            cert=load_certificate(self.subject, self.issuer),
            issuer=issuer,
            algorithm=self.hash_algorithm,
            cert_status=self.status,
            this_update=utc_time(self.begin),
            next_update=None if self.end is None else utc_time(self.end),
            revocation_time=utc_time(self.begin) if revoked else None,
            revocation_reason=x509.ReasonFlags.key_compromise
            if self.status is ocsp.OCSPCertStatus.REVOKED
            else None,
        )
        signer = load_certificate(self.responder, self.certifier) if self.responder else issuer
        builder = builder.responder_id(self.encoding, signer)
        if self.responder and self.shown:
            builder = builder.certificates(
                [load_certificate(self.attached or self.responder, self.certifier)]
            )
        return builder.sign((self.responder or self.issuer).key, self.signature_hash).public_bytes(
            Encoding.DER
        )


def delegated_responder(makers: GpuEvidenceMaker, **changes: Any) -> Any:
    """Returns the certificate of the honest responder, but for `changes`."""
    extensions = (OCSP_SIGNING, makers.key_usage("digital_signature"))
    return replace(makers.certificate("NOT NVIDIA - test responder", 3001, extensions), **changes)


def ocsp_reply(makers: GpuEvidenceMaker, **changes: Any) -> OcspReply:
    """Returns the honest response about the honest GPU, but for `changes`."""
    return replace(
        OcspReply(makers.ca, makers.root, delegated_responder(makers), makers.root), **changes
    )
