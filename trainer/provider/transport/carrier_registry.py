"""The list of carriers, and the choice of one by the location of a job."""

from __future__ import annotations

from typing import Final

from trainer.errors import ErrorCode, UsageError
from trainer.provider.transport.carrier import DEFAULT_WAIT_SECONDS, Carrier, CarrierKind
from trainer.provider.transport.http_carrier import HTTP_CARRIER
from trainer.provider.transport.spool_carrier import SPOOL_CARRIER
from trainer.provider.transport.store_carrier import STORE_CARRIER

CARRIERS: Final[tuple[CarrierKind, ...]] = (HTTP_CARRIER, STORE_CARRIER, SPOOL_CARRIER)
"""Every carrier; the first that serves a location is used."""


def connect_to_job(
    location: str,
    *,
    pinned_spki_sha256: str | None = None,
    wait_seconds: float = DEFAULT_WAIT_SECONDS,
) -> Carrier:
    """Returns the carrier client for a job.

    Args:
        location: an https:// URL, an object store, or the path of a spool directory.
        pinned_spki_sha256: SHA-256 of the only acceptable TLS key in hex, from an appraisal of the job.
        wait_seconds: how long a job that exchanges files is waited for, where it owes an answer.

    Raises:
        UsageError: no carrier serves the location.
    """
    for kind in CARRIERS:
        if kind.serves(location):
            return kind.connect(location, pinned_spki_sha256, wait_seconds)
    raise UsageError(
        ErrorCode.USAGE,
        "this is not the location of a job",
        expected=" or ".join(kind.location for kind in CARRIERS),
        found=location,
    )
