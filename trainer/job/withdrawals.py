"""Which datasets of a joint job their providers have taken back, in one start of the job."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.errors import ErrorCode, SealingError
from trainer.exchange.withdrawal import MAX_WITHDRAWALS, read_withdrawal


class Withdrawals:
    """The datasets that were taken back, by provider and grant. None of them is trained on in this start.

    Args:
        providers: public keys of the providers, in the order of the job spec; empty: nobody can take one back.
        job_spec_sha256: digest of the job spec.
    """

    def __init__(self, providers: Sequence[str], job_spec_sha256: str) -> None:
        self._grants: dict[str, set[str]] = {provider: set() for provider in providers}
        self._job_spec_sha256 = job_spec_sha256

    def add(self, token: str) -> tuple[str, str] | None:
        """Adds a withdrawal; returns provider and digest of the grant, None if it is none or not a new one.

        Args:
            token: as a front passed it on.
        """
        found = read_withdrawal(token, tuple(self._grants), self._job_spec_sha256)
        if found is None or self._includes(*found):
            return None
        self._grants[found[0]].add(found[1])
        return found

    def require_not_withdrawn(self, provider: str, grant_sha256: str) -> None:
        """Requires that a provider has not taken back the dataset with this grant, nor too many others.

        Raises:
            SealingError: GRANT_WITHDRAWN.
        """
        if self._includes(provider, grant_sha256):
            raise SealingError(
                ErrorCode.GRANT_WITHDRAWN, "the provider has taken this dataset back"
            )

    def _includes(self, provider: str, grant_sha256: str) -> bool:
        # The list has an end: without one a provider could fill the memory.
        grants = self._grants[provider]
        return grant_sha256 in grants or len(grants) >= MAX_WITHDRAWALS
