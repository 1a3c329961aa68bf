"""The withdrawal of a dataset from a joint job: sign it, pass it on, and wait until the job says it is out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from trainer.errors import ErrorCode, UnavailableError, UsageError
from trainer.exchange.withdrawal import Withdrawal, sign_withdrawal
from trainer.models import Phase
from trainer.provider.grants import GrantRecord
from trainer.provider.transport.carrier import Carrier
from trainer.provider_keys import ProviderKey

_LOOKS: Final = 120
_PAUSE_SECONDS: Final = 1.0

_UNDECIDED: Final = frozenset({Phase.AWAITING_DATASET, Phase.AWAITING_GRANT, Phase.OPENING})
"""Phases in which a job may still heed a withdrawal."""


def withdraw_dataset(
    client: Carrier,
    grant: GrantRecord,
    key: ProviderKey,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Takes a dataset back from a joint job; returns once the job says so.

    Args:
        client: carrier of the job.
        grant: what the provider kept of the dataset.
        key: the provider's, which signed the dataset.
        sleep: waits for seconds.

    Raises:
        UsageError: the grant is for a job of one provider.
        UnavailableError: WRONG_PHASE: the training has begun; TIMEOUT: the job says nothing of it.
    """
    if grant.number is None:
        raise UsageError(
            ErrorCode.USAGE,
            "the grant",
            expected="one for a joint job, which waits for other providers",
            found="one for a job of one provider, which trains as soon as it has a dataset",
        )
    withdrawal = Withdrawal(
        version=1, job_spec_sha256=grant.grant.job_spec_sha256, grant_sha256=grant.grant.sha256()
    )
    client.withdraw(sign_withdrawal(withdrawal, key))
    for _ in range(_LOOKS):
        status = client.status()
        if grant.number in status.withdrawn:
            return
        if status.phase not in _UNDECIDED:
            raise UnavailableError(
                ErrorCode.WRONG_PHASE,
                "the dataset cannot be taken back",
                expected="a job that still waits for providers",
                found=status.phase.value,
            )
        sleep(_PAUSE_SECONDS)
    raise UnavailableError(
        ErrorCode.TIMEOUT,
        f"the job did not take the dataset out in {_LOOKS * _PAUSE_SECONDS:.0f} s",
        hint="is it the provider key that signed the dataset?",
    )
