"""TLS without certificate authorities: the job has a key that exists in memory only, the client pins that key.

The attested claims contain the job's TLS key (`tls_key`). The client compares its digest with that of the key that
the peer proved to possess in the handshake, before it sends a byte of a request.
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
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import NameOID

from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, UnavailableError, VerificationError

_CERTIFICATE_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "confidential-trainer")])


def make_server_context(*, now: int) -> tuple[ssl.SSLContext, bytes]:
    """Returns a TLS 1.3 server context with a fresh P-256 key, and the key's DER SubjectPublicKeyInfo.

    Args:
        now: Unix time; it dates the certificate, which no client checks.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # no session resumption: every connection proves possession of the key
    context.set_alpn_protocols(["http/1.1"])
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    _load_certificate(
        context,
        _self_sign(key, now) + key.private_bytes(encoding, form, serialization.NoEncryption()),
    )
    return context, _public_key_der(key.public_key())


def hash_public_key(key: PublicKeyTypes) -> str:
    """Returns the SHA-256 of the key's DER SubjectPublicKeyInfo, in hex."""
    return sha256_hex(_public_key_der(key))


def _public_key_der(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _self_sign(key: ec.EllipticCurvePrivateKey, now: int) -> bytes:
    start = dt.datetime.fromtimestamp(now, dt.UTC) - dt.timedelta(days=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_CERTIFICATE_NAME)
        .issuer_name(_CERTIFICATE_NAME)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=3650))
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _load_certificate(context: ssl.SSLContext, pem: bytes) -> None:
    """Loads certificate and key. `ssl` reads files only; an anonymous file in memory never reaches a disk."""
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        os.pwrite(descriptor, bytes(len(pem)), 0)  # overwrites the key before the memory is freed
    finally:
        os.close(descriptor)


class PinnedContext(ssl.SSLContext):
    """A client context that trusts one key and no authority.

    The first handshake records the peer's key unless `pin` is set before; every later one must show the same key.
    The check runs inside `wrap_socket`, so a caller never gets a connection to another key.
    """

    pin: str | None
    """SHA-256 of the only acceptable SubjectPublicKeyInfo, in hex; None until one is known."""

    def __new__(cls, pin: str | None) -> Self:
        """Makes a context for TLS 1.3 that demands the key `pin`, if there is one."""
        context = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        # No authority certifies the job, so that OpenSSL has nothing to verify; `_check_peer_key` compares the
        # key.
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
        """Does the handshake and compares the keys.

        Raises:
            VerificationError: the peer has another key (`tls-key-mismatch`). It got nothing but the handshake, and
                the connection is closed.
            ValueError: the caller asks to postpone the handshake, which would skip the check.
        """
        if server_side or not do_handshake_on_connect:
            raise ValueError("a pinned context is for clients that complete the handshake at once")
        wrapped = super().wrap_socket(
            sock,
            suppress_ragged_eofs=suppress_ragged_eofs,
            server_hostname=server_hostname,
            session=session,
        )
        try:
            self._check_peer_key(wrapped)
        except BaseException:
            wrapped.close()
            raise
        return wrapped

    def wrap_bio(self, *_: object, **__: object) -> ssl.SSLObject:
        """Refuses: with memory buffers the caller drives the handshake and could leave out the check.

        Raises:
            ValueError: always.
        """
        raise ValueError("a pinned context is for blocking sockets")

    def _check_peer_key(self, connection: ssl.SSLSocket) -> None:
        # The handshake proved that the peer has the key of this certificate; names, dates and issuer do not
        # matter.
        der = connection.getpeercert(binary_form=True)
        if der is None:
            raise UnavailableError(ErrorCode.JOB_UNREACHABLE, "the peer showed no certificate")
        try:
            found = hash_public_key(x509.load_der_x509_certificate(der).public_key())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UnavailableError(
                ErrorCode.JOB_UNREACHABLE, "the peer's certificate cannot be read"
            ) from error
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
