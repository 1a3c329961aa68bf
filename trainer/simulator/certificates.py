"""Keys, certificates and CRLs of the development PKI: deterministic, and named NOT INTEL.

Source of the profile: Intel SGX PCK Certificate and Certificate Revocation List Profile Specification 1.5.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from trainer.simulator.der import SGX_EXTENSION_OID

ORGANIZATION: Final = "NOT INTEL - development trust root"
"""Organization in the name of every certificate; X.509 allows 64 characters."""

_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_NOT_BEFORE: Final = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
_NOT_AFTER: Final = dt.datetime(2049, 12, 31, tzinfo=dt.UTC)
_DAY: Final = dt.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """A certificate and the private key that it certifies."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        """The certificate in PEM."""
        return self.certificate.public_bytes(Encoding.PEM).decode()


def derive_p256_key(seed: bytes, label: str) -> ec.EllipticCurvePrivateKey:
    """Derives a P-256 key from seed and label.

    private key = HKDF-SHA256(seed, 48 bytes) mod (order - 1) + 1. 384 bits reduced modulo a number of 256 bits
    have a bias below 2**-128.
    """
    info = b"confidential-trainer/development-pki/" + label.encode()
    wide = HKDF(hashes.SHA256(), length=48, salt=None, info=info).derive(seed)
    return ec.derive_private_key(
        int.from_bytes(wide, "big") % (_P256_ORDER - 1) + 1, ec.SECP256R1()
    )


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """Signs with ECDSA over SHA-256; returns r ‖ s, 32 bytes each; deterministic (RFC 6979)."""
    r, s = decode_dss_signature(
        key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    )
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def raw_public_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Returns X ‖ Y of the public point, 32 bytes each."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def issue(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: Authority | None,
    *,
    ca_path_length: int | None = None,
    sgx_extension: bytes | None = None,
    end: int | None = None,
) -> Authority:
    """Issues a certificate of `key` for `name`; the same arguments give the same bytes.

    Args:
        name: common name.
        key: key to certify.
        issuer: signs the certificate; None makes it self-signed.
        ca_path_length: makes the certificate a CA with at most this many CAs below it; None makes a leaf.
        sgx_extension: DER of the SGX extension of a PCK certificate.
        end: end of validity in seconds since 1970; None means the end of 2049.
    """
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
        ]
    )
    digest = hashlib.sha256(name.encode() + raw_public_key(key)).digest()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        # Positive, at most 20 bytes (RFC 5280, section 4.1.2.2); from name and key, so that it is reproducible.
        .serial_number(int.from_bytes(digest[:16], "big") >> 1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER if end is None else dt.datetime.fromtimestamp(end, dt.UTC))
    )
    signer = issuer.key if issuer else key
    for extension, critical in _extensions(key, signer, ca_path_length, sgx_extension):
        builder = builder.add_extension(extension, critical)
    return Authority(builder.sign(signer, hashes.SHA256(), ecdsa_deterministic=True), key)


def revocation_list(
    issuer: Authority, now: int, until: int, revoked: Iterable[Authority] = ()
) -> bytes:
    """Returns the DER of a CRL of `issuer`, valid from a day before `now` to `until` (seconds since 1970)."""
    time = dt.datetime.fromtimestamp(now, dt.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(time - _DAY)
        .next_update(dt.datetime.fromtimestamp(until, dt.UTC))
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()),
            critical=False,
        )
    )
    for authority in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(authority.certificate.serial_number)
        builder = builder.add_revoked_certificate(entry.revocation_date(time - _DAY).build())
    return builder.sign(issuer.key, hashes.SHA256(), ecdsa_deterministic=True).public_bytes(
        Encoding.DER
    )


def _extensions(
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    ca_path_length: int | None,
    sgx_extension: bytes | None,
) -> list[tuple[x509.ExtensionType, bool]]:
    is_ca = ca_path_length is not None
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False),
        (x509.BasicConstraints(ca=is_ca, path_length=ca_path_length), True),
        (_key_usage(is_ca=is_ca), True),
    ]
    if sgx_extension is not None:
        oid = x509.ObjectIdentifier(SGX_EXTENSION_OID)
        extensions.append((x509.UnrecognizedExtension(oid, sgx_extension), False))
    return extensions


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=not is_ca,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
