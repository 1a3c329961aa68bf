"""A client of the job: SPEC.md, "Exchange over HTTPS"."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_der_x509_certificate

TIMEOUT_SECONDS: Final = 90
DELETION_TYPE: Final = "application/vnd.confidential-trainer.deletion+json"


@dataclass(frozen=True)
class Answer:
    """A response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def _unverified() -> ssl.SSLContext:
    # The certificate is self-signed: the claims name its key.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


@dataclass
class JobClient:
    """One connection for each request; the TLS key of the first is pinned for the others."""

    port: int
    tls_key: bytes = b""
    """DER SubjectPublicKeyInfo."""
    _context: ssl.SSLContext = field(default_factory=_unverified)

    def connect(self) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, context=self._context, timeout=TIMEOUT_SECONDS
        )
        connection.connect()
        certificate = connection.sock.getpeercert(binary_form=True)
        assert isinstance(certificate, bytes)
        shown = load_der_x509_certificate(certificate).public_key()
        der = shown.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.tls_key = self.tls_key or der
        assert der == self.tls_key
        return connection

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = self.connect()
        try:
            connection.request(method, path, body, _named(headers))
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def create_upload(self, size: int, token: str) -> Answer:
        return self.ask(
            "POST",
            "/dataset",
            upload_length=str(size),
            authorization=f"Bearer {token}",
            tus_resumable="1.0.0",
        )

    def upload_piece(self, path: str, offset: int, piece: bytes) -> Answer:
        return self.ask("PATCH", path, piece, **_piece(offset))

    def cut_piece(self, path: str, offset: int, size: int, sent: bytes) -> None:
        """Announces `size` bytes, sends fewer, and closes the connection."""
        connection = self.connect()
        connection.putrequest("PATCH", path)
        for name, value in _named({**_piece(offset), "content_length": str(size)}).items():
            connection.putheader(name, value)
        connection.endheaders(sent)
        connection.close()

    def events(self, token: str) -> Iterator[tuple[str, bytes]]:
        """Yields kind and data of each event, in the order of their ids."""
        connection = self.connect()
        try:
            connection.request("GET", "/events", headers={"Authorization": f"Bearer {token}"})
            response = connection.getresponse()
            assert (response.status, response.getheader("content-type")) == (
                200,
                "text/event-stream; charset=utf-8",
            )
            last, current = 0, dict[str, str]()
            for line in iter(response.readline, b""):
                name, separator, value = line.decode().rstrip("\n").partition(": ")
                if separator and name:
                    current[name] = value
                elif not name and current:
                    assert int(current["id"]) > last
                    last = int(current["id"])
                    yield current["event"], current["data"].encode()
                    current = {}
        finally:
            connection.close()


def _piece(offset: int) -> dict[str, str]:
    return {
        "tus_resumable": "1.0.0",
        "upload_offset": str(offset),
        "content_type": "application/offset+octet-stream",
    }


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def bearer(document: bytes, signature: bytes) -> str:
    """Returns the token of an authorisation to upload."""
    return ".".join(
        base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (document, signature)
    )
