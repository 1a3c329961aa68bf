"""TLS certificates of the simulated VM: issued by the development key service, with an attestation if asked for.

Source: dstack's `ra-tls` crate (object identifiers, `ratls-cert` report data, the certificate form with quote and
event log as two extensions).
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trainer.simulator.agent import SimulatedVm

_QUOTE_OID: Final = x509.ObjectIdentifier("1.3.6.1.4.1.62397.1.1")
_EVENT_LOG_OID: Final = x509.ObjectIdentifier("1.3.6.1.4.1.62397.1.2")
_APP_ID_OID: Final = x509.ObjectIdentifier("1.3.6.1.4.1.62397.1.3")

_LIFETIME: Final = dt.timedelta(days=30)
_LATEST: Final = 2524607999  # 2049-12-31, the end of the CA


@dataclass(frozen=True)
class TlsRequest:
    """What a TLS certificate is asked to be for. Times are seconds since 1970."""

    subject: str = ""
    alt_names: tuple[str, ...] = ()
    server_auth: bool = True
    client_auth: bool = False
    with_quote: bool = False
    not_before: int | None = None
    not_after: int | None = None


@dataclass(frozen=True)
class TlsKey:
    """A random P-256 private key with its certificate chain, leaf first; all PEM."""

    key: str
    certificate_chain: tuple[str, str]


def issue_tls_key(vm: SimulatedVm, request: TlsRequest, now: int) -> TlsKey:
    """A new key and a certificate for it, signed by the development key service.

    Raises:
        ValueError: a name or a time has no form in X.509, or the validity ends before it begins.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    begin, end = _validity(request, now)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, request.subject or "app")]))
        .issuer_name(vm.key_service_ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    for extension in _extensions(vm, request, key.public_key()):
        builder = builder.add_extension(extension, critical=False)
    certificate = builder.sign(vm.key_service_ca.key, hashes.SHA256())
    return TlsKey(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        (certificate.public_bytes(Encoding.PEM).decode(), vm.key_service_ca.pem),
    )


def _validity(request: TlsRequest, now: int) -> tuple[dt.datetime, dt.datetime]:
    begin = request.not_before if request.not_before is not None else now - 300
    end = request.not_after if request.not_after is not None else now + int(_LIFETIME.total_seconds())
    if not 0 <= begin < end <= _LATEST:
        raise ValueError("not_before must be earlier than not_after, both between 1970 and 2049")
    return dt.datetime.fromtimestamp(begin, dt.UTC), dt.datetime.fromtimestamp(end, dt.UTC)


def _extensions(
    vm: SimulatedVm, request: TlsRequest, public_key: ec.EllipticCurvePublicKey
) -> list[x509.ExtensionType]:
    extensions: list[x509.ExtensionType] = [
        x509.UnrecognizedExtension(_APP_ID_OID, asn1.encode_der(vm.app_id)),
    ]
    if request.alt_names:
        extensions.append(x509.SubjectAlternativeName([x509.DNSName(name) for name in request.alt_names]))
    usages = [
        usage
        for usage, wanted in (
            (ExtendedKeyUsageOID.SERVER_AUTH, request.server_auth),
            (ExtendedKeyUsageOID.CLIENT_AUTH, request.client_auth),
        )
        if wanted
    ]
    if usages:
        extensions.append(x509.ExtendedKeyUsage(usages))
    return extensions + (_attestation(vm, public_key) if request.with_quote else [])


def _attestation(vm: SimulatedVm, public_key: ec.EllipticCurvePublicKey) -> list[x509.ExtensionType]:
    spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    quote = vm.quote(hashlib.sha512(b"ratls-cert:" + spki).digest())
    return [
        x509.UnrecognizedExtension(_QUOTE_OID, asn1.encode_der(quote.quote)),
        x509.UnrecognizedExtension(_EVENT_LOG_OID, asn1.encode_der(quote.event_log.encode())),
    ]
