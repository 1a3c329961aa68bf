"""Downloads Intel's collateral for a quote, from the Provisioning Certification Service (PCS, API v4) or a PCCS.

Intel signs all of it and the appraisal verifies the signatures: service and cache can withhold, but not forge.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import dcap_qvl
from cryptography import x509
from pydantic import BaseModel, ConfigDict
from pydantic import Field as PydanticField

from trainer.atomic_files import PRIVATE_MODE, replace_atomically
from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, UnavailableError, UsageError, VerificationError

_FETCH_SECONDS: Final = 60.0
_MAX_COLLATERAL_BYTES: Final = 4 << 20


class _SignedDocument(BaseModel):
    """The end of validity of TCB info or QE identity; appraisal reads their other fields."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    next_update: Annotated[dt.datetime, PydanticField(alias="nextUpdate")]


class _CollateralDates(BaseModel):
    """The parts of a collateral document that have an end of validity."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    tcb_info: str
    qe_identity: str
    root_ca_crl: str
    pck_crl: str


@dataclass(frozen=True)
class Platform:
    """What a collateral document is valid for.

    Args:
        fmspc: family, model, stepping, platform and custom SKU of the CPU, in hex.
        ca: the certification authority of the quote's key: `processor` or `platform`.
    """

    fmspc: str
    ca: str


def fetch_collateral(
    quote: bytes, url: str, *, cache_dir: Path | None, now: int, timeout: float = _FETCH_SECONDS
) -> bytes:
    """Returns the collateral for a quote: from the cache while it is valid, else from `url`.

    Args:
        quote: a TDX quote, unverified.
        url: base URL of a PCS or PCCS.
        cache_dir: directory for documents, one per platform; None for no cache.
        now: Unix time; a document whose validity ended before is not taken from the cache.
        timeout: seconds for all requests together.

    Returns:
        JSON of collateral as `dcap_qvl.QuoteCollateralV3.from_json` reads it.

    Raises:
        VerificationError: the quote cannot be parsed (`evidence-invalid`).
        UnavailableError: the service does not answer, or its answer is not collateral (`collateral-unavailable`).
    """
    try:
        parsed = dcap_qvl.parse_quote(quote)
        platform = Platform(parsed.fmspc().lower(), parsed.ca())
    except ValueError as error:
        raise VerificationError(
            ErrorCode.EVIDENCE_INVALID, f"the quote cannot be parsed: {error}"
        ) from error
    if cache_dir is None:
        return _download(quote, url, timeout)
    name = f"collateral-{platform.fmspc}-{platform.ca}-{sha256_hex(url.encode())[:16]}.json"
    collateral = _read_cache(cache_dir / name, now)
    if collateral is None:
        collateral = _download(quote, url, timeout)
        # A cache that cannot be written only costs a request.
        with contextlib.suppress(OSError, UsageError, UnavailableError):
            cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            with replace_atomically(cache_dir / name, PRIVATE_MODE) as file:
                file.write(collateral)
    return collateral


def earliest_next_update(collateral: bytes) -> int:
    """Returns the Unix time at which the first part of a collateral document becomes invalid.

    Raises:
        ValueError: not a collateral document, or larger than one may be.
    """
    if len(collateral) > _MAX_COLLATERAL_BYTES:
        raise ValueError(f"more than {_MAX_COLLATERAL_BYTES} bytes")
    document = _CollateralDates.model_validate_json(collateral)
    ends = [
        _SignedDocument.model_validate_json(text).next_update
        for text in (document.tcb_info, document.qe_identity)
    ]
    for text in (document.root_ca_crl, document.pck_crl):
        # The syntax of a CRL makes nextUpdate optional; RFC 5280, section 5.1.2.5, requires it.
        end = x509.load_der_x509_crl(bytes.fromhex(text)).next_update_utc
        if end is None:
            raise ValueError("a CRL without nextUpdate")
        ends.append(end)
    return int(min(end.timestamp() for end in ends))


def _download(quote: bytes, url: str, timeout: float) -> bytes:
    async def get() -> str:
        async with asyncio.timeout(timeout):
            return str((await dcap_qvl.get_collateral(url, quote)).to_json())

    try:
        document = json.loads(asyncio.run(get()))
        # A chain belongs to one machine, and the quote contains it; the rest is the same for all of its platform.
        document.pop("pck_certificate_chain", None)
        data = json.dumps(document).encode()
        earliest_next_update(data)
    except (TimeoutError, ValueError) as error:
        raise UnavailableError(
            ErrorCode.COLLATERAL_UNAVAILABLE,
            f"no collateral from {url}: {str(error) or 'no answer in time'}",
            hint="name another service in the policy's `collateral.url`, or a saved document in `collateral.file`",
        ) from error
    return data


def _read_cache(path: Path, now: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_COLLATERAL_BYTES + 1)
        return data if now < earliest_next_update(data) else None
    except (OSError, ValueError):
        return None
