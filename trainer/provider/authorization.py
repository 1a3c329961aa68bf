"""What a provider shows a job that names its providers: signed authorisations for its uploads."""

from __future__ import annotations

import time

from trainer.attestation.result.attestation_result import AttestationResult
from trainer.encoding import sha256_hex
from trainer.exchange.upload_authorization import UploadAuthorization, sign_authorization
from trainer.provider.grants import GRANT_SECONDS
from trainer.provider.transport.carrier import Authorize
from trainer.provider_keys import ProviderKey


def make_authorizer(key: ProviderKey | None, result: AttestationResult) -> Authorize | None:
    """Returns what signs an authorisation when an upload begins; None without a key.

    Args:
        key: the provider's, from its identity file.
        result: the appraisal that the dataset was sealed on.
    """
    if key is None:
        return None

    def authorize(size: int, tls_spki_sha256: str | None) -> str:
        # As long as a grant: a dataset in a spool may lie there before the job starts. Over TLS the job's key,
        # which ends with this start of the job, bounds it more narrowly.
        authorization = UploadAuthorization(
            version=1,
            expires_at=int(time.time()) + GRANT_SECONDS,
            job_spec_sha256=result.job_spec_sha256,
            recipient_sha256=sha256_hex(result.recipient.encode()),
            size=size,
            tls_spki_sha256=tls_spki_sha256,
        )
        return sign_authorization(authorization, key)

    return authorize
