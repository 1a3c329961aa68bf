"""TLS without certificate authorities: a key that lives in memory on one side, a pin of that key on the other.

The digest of the job's TLS key stands in its attested claims (`tls_spki_sha256`). The client compares it with the
key that the peer proved to hold in the handshake, before a byte of any request leaves.
"""

from __future__ import annotations

import datetime as dt
import os
import socket
import ssl
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, UnavailableError, VerificationError

_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "confidential-trainer")])


def server_context(*, now: int) -> tuple[ssl.SSLContext, str]:
    """A TLS 1.3 server context with a fresh P-256 key, and the SHA-256 of its SubjectPublicKeyInfo in hex.

    Args:
        now: Unix time; only dates the certificate, which nobody checks.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # every connection proves the key anew
    context.set_alpn_protocols(["http/1.1"])
    _load_from_memory(context, _certificate(key, now) + _private_pem(key))
    return context, spki_sha256(key.public_key())


def spki_sha256(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the DER SubjectPublicKeyInfo, in hex."""
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return sha256_hex(key.public_bytes(encoding, form))


def _certificate(key: ec.EllipticCurvePrivateKey, now: int) -> bytes:
    start = dt.datetime.fromtimestamp(now, dt.UTC) - dt.timedelta(days=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_NAME)
        .issuer_name(_NAME)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=3650))
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_from_memory(context: ssl.SSLContext, pem: bytes) -> None:
    """`ssl` reads keys from files only; an anonymous file in memory never reaches a disk."""
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        os.pwrite(descriptor, bytes(len(pem)), 0)
    finally:
        os.close(descriptor)


class PinnedContext(ssl.SSLContext):
    """A client context that trusts no authority and one key.

    The first handshake records the peer's key unless `pin` is set before; every later one must show the
    same. The check runs inside `wrap_socket`, so a connection to another key is never handed to its user.
    """

    pin: str | None
    """SHA-256 of the only acceptable SubjectPublicKeyInfo, in hex; None until one is known."""

    def __new__(cls, pin: str | None) -> Self:
        """A context for TLS 1.3 that demands `pin`, if there is one."""
        context = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["http/1.1"])
        context.pin = pin
        return context

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        """Handshake, then compare keys.

        Raises:
            VerificationError: the peer holds another key (`tls-key-mismatch`). Nothing was sent to it but the
                handshake, and the connection is closed.
            ValueError: a caller that wants to postpone the handshake, past the check.
        """
        if server_side or not do_handshake_on_connect:
            raise ValueError("a pinned context is for clients that complete the handshake at once")
        wrapped = super().wrap_socket(
            sock, suppress_ragged_eofs=suppress_ragged_eofs, server_hostname=server_hostname, session=session
        )
        try:
            self._check(wrapped)
        except BaseException:
            wrapped.close()
            raise
        return wrapped

    def wrap_bio(self, *_: object, **__: object) -> ssl.SSLObject:
        """Not offered: its handshake is driven by the caller, so the check could be forgotten.

        Raises:
            ValueError: always.
        """
        raise ValueError("a pinned context is for blocking sockets")

    def _check(self, connection: ssl.SSLSocket) -> None:
        found = _peer_spki_sha256(connection)
        if self.pin is None:
            self.pin = found
        elif self.pin != found:
            raise VerificationError(
                ErrorCode.TLS_KEY_MISMATCH,
                "the TLS key is not the one that was verified",
                expected=self.pin,
                found=found,
                hint="someone else answers at this address, or the job was restarted: verify it again",
            )


def _peer_spki_sha256(connection: ssl.SSLSocket) -> str:
    der = connection.getpeercert(binary_form=True)
    if der is None:
        raise UnavailableError(ErrorCode.JOB_UNREACHABLE, "the peer showed no certificate")
    try:
        public = x509.load_der_x509_certificate(der).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UnavailableError(ErrorCode.JOB_UNREACHABLE, "the peer's certificate cannot be read") from error
    return sha256_hex(
        public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
