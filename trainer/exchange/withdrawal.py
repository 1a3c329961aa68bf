"""A provider's request to take its dataset out of a joint job that has not begun to train: a signed token.

It names the job spec and the grant. A grant has a secret of its own, so that whoever sees the token can take
nothing back with it but this one dataset, at this job and no other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from trainer.encoding import sha256_hex
from trainer.exchange.signed_token import read_token, sign_token
from trainer.models import One, Sha256Hex, Strict
from trainer.provider_keys import ProviderKey

MAX_WITHDRAWALS: Final = 16
"""A provider that has taken back so many datasets of one start of a job takes no part in it any more."""

WITHDRAWAL_NAME: Final = re.compile(r"withdrawal-[0-9a-f]{16}")
"""Names of the files that carry one in a spool."""

_DOMAIN: Final = "confidential-trainer/withdrawal/v1"


class Withdrawal(Strict):
    """The document that a provider signs.

    Attributes:
        job_spec_sha256: digest of the job spec.
        grant_sha256: digest of the grant that the dataset is sealed with.
    """

    version: One
    job_spec_sha256: Sha256Hex
    grant_sha256: Sha256Hex


def withdrawal_name(token: str) -> str:
    """Returns the name of the file that carries a token in a spool."""
    return f"withdrawal-{sha256_hex(token.encode())[:16]}"


def sign_withdrawal(withdrawal: Withdrawal, key: ProviderKey) -> str:
    """Returns the token."""
    return sign_token(withdrawal, _DOMAIN, key)


def read_withdrawal(
    token: str, providers: Sequence[str], job_spec_sha256: str
) -> tuple[str, str] | None:
    """Returns the provider and the digest of its grant; None if it is no withdrawal of a provider from this job.

    Args:
        token: as received.
        providers: public keys of the job's providers.
        job_spec_sha256: digest of the job's spec.
    """
    found = read_token(token, _DOMAIN, providers, Withdrawal)
    if found is None or found[1].job_spec_sha256 != job_spec_sha256:
        return None
    return found[0], found[1].grant_sha256
