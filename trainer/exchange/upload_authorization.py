"""Who may upload to a job that lists providers: a token that one of them signs, and that the front checks first.

    token    base64url(JCS document) "." base64url(signature), without padding

The document names what the token is good for: this job spec, the recipient that the dataset is sealed to, the TLS
key of this start of the job, the size of the upload, and an end. Whoever sees it can use it for nothing else, such
as another VM, another start or a larger upload. It authorises an upload only: what was uploaded has a signature of
its own inside, which the supervisor checks.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field, TypeAdapter

from trainer.encoding import canonical_json
from trainer.models import One, Sha256Hex, Strict, UnixTime, parse_strict
from trainer.provider_keys import ProviderKey, is_signed_by

MAX_AUTHORIZATION_BYTES: Final = 1024
"""One token; it has about 550 characters."""

_DOMAIN: Final = "confidential-trainer/upload-authorization/v1"


class UploadScope(Strict):
    """What an authorisation for one start of a job has to name.

    Attributes:
        job_spec_sha256: digest of the job spec.
        recipient_sha256: digests of the recipients that the job has, of their text.
    """

    job_spec_sha256: Sha256Hex
    recipient_sha256: Annotated[tuple[Sha256Hex, ...], Field(min_length=1, max_length=2)]


class UploadAuthorization(Strict):
    """The document that a provider signs.

    Attributes:
        expires_at: Unix time in seconds from which it is good for nothing.
        job_spec_sha256: digest of the job spec.
        recipient_sha256: digest of the recipient that the dataset is sealed to, of its text.
        size: of the sealed dataset, in bytes.
        tls_spki_sha256: digest of the job's TLS key; None if files carry the exchange.
    """

    version: One
    expires_at: UnixTime
    job_spec_sha256: Sha256Hex
    recipient_sha256: Sha256Hex
    size: Annotated[int, Field(ge=1, le=2**53 - 1)]
    tls_spki_sha256: Sha256Hex | None


_DOCUMENT: Final = TypeAdapter(UploadAuthorization)


def sign_authorization(authorization: UploadAuthorization, key: ProviderKey) -> str:
    """Returns the token."""
    document = canonical_json(authorization.model_dump(mode="json"))
    return f"{_encode(document)}.{_encode(key.sign(_DOMAIN, document))}"


@dataclass(frozen=True)
class UploadGate:
    """Decides whether an upload may begin.

    Args:
        providers: public keys of those who may upload; empty: anyone.
        tls_spki_sha256: digest of this front's TLS key; None if files carry the exchange.
    """

    providers: tuple[str, ...]
    tls_spki_sha256: str | None

    def admits(
        self, token: str | None, size: int, scope: UploadScope | None, *, now: float
    ) -> bool:
        """Returns whether an upload may begin.

        Args:
            token: what the client showed; None if nothing.
            size: of the upload that the client announces, in bytes.
            scope: what the token has to name; None before the job has keys.
            now: Unix time in seconds.
        """
        if not self.providers:
            return True
        found = self._read(token) if token is not None else None
        return (
            found is not None
            and scope is not None
            and found.job_spec_sha256 == scope.job_spec_sha256
            and found.recipient_sha256 in scope.recipient_sha256
            and found.tls_spki_sha256 == self.tls_spki_sha256
            and found.size == size
            and now < found.expires_at
        )

    def _read(self, token: str) -> UploadAuthorization | None:
        """Returns the document, if a listed provider signed it: nothing of it is parsed before that is known."""
        document_text, _, signature_text = token.partition(".")
        try:
            document, signature = _decode(document_text), _decode(signature_text)
        except (UnicodeEncodeError, binascii.Error):
            return None
        if not any(
            is_signed_by(provider, signature, _DOMAIN, document) for provider in self.providers
        ):
            return None
        try:
            return parse_strict(_DOCUMENT, document)
        except ValueError:
            return None


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    data = text.encode("ascii")
    return base64.b64decode(data + b"=" * (-len(data) % 4), altchars=b"-_", validate=True)
