"""Who may upload to a job that lists providers: a token that one of them signs, and that the front checks first.

The document names what the token is good for: this job spec, the recipient that the dataset is sealed to, the TLS
key of this start of the job, the size of the upload, and an end. Whoever sees it can use it for nothing else, such
as another VM, another start or a larger upload. It authorises an upload only: what was uploaded has a signature of
its own inside, which the supervisor checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field

from trainer.exchange.signed_token import read_token, sign_token
from trainer.exchange.withdrawal import read_withdrawal
from trainer.models import One, Sha256Hex, Strict, UnixTime
from trainer.provider_keys import ProviderKey

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


def sign_authorization(authorization: UploadAuthorization, key: ProviderKey) -> str:
    """Returns the token."""
    return sign_token(authorization, _DOMAIN, key)


@dataclass(frozen=True)
class UploadGate:
    """Decides whether an upload may begin.

    Args:
        providers: public keys of those who may upload; empty: anyone.
        tls_spki_sha256: digest of this front's TLS key; None if files carry the exchange.
        joint: whether they may take a dataset back.
    """

    providers: tuple[str, ...]
    tls_spki_sha256: str | None
    joint: bool = False

    def admits_withdrawal(self, token: str, job_spec_sha256: str) -> bool:
        """Returns whether a token is a withdrawal by one of the providers, from this job."""
        return self.joint and read_withdrawal(token, self.providers, job_spec_sha256) is not None

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
        read = token and read_token(token, _DOMAIN, self.providers, UploadAuthorization)
        if not read:
            return False
        found = read[1]
        return (
            scope is not None
            and found.job_spec_sha256 == scope.job_spec_sha256
            and found.recipient_sha256 in scope.recipient_sha256
            and found.tls_spki_sha256 == self.tls_spki_sha256
            and found.size == size
            and now < found.expires_at
        )
