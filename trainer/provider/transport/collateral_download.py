"""Collateral of Intel's Provisioning Certification Service (PCS, API v4), from a PCS or a caching service.

Everything fetched is signed by Intel and checked in appraisal: the service and the cache can withhold, not forge.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import dcap_qvl
from cryptography import x509
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic import Field as PydanticField

from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, UnavailableError, VerificationError

_FETCH_SECONDS: Final = 60.0
_MAX_BYTES: Final = 4 << 20


class _Dated(BaseModel):
    """What TCB info and QE identity have in common; their other fields are for appraisal."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    next_update: Annotated[dt.datetime, PydanticField(alias="nextUpdate")]


class _Collateral(BaseModel):
    """The parts of a collateral document that say when it ends."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    tcb_info: str
    qe_identity: str
    root_ca_crl: str
    pck_crl: str


@dataclass(frozen=True)
class Platform:
    """What collateral belongs to: a family of CPUs and the authority that certified the quote's key."""

    fmspc: str
    ca: str
    embeds_chain: bool


def fetch_collateral(
    quote: bytes, url: str, *, cache_dir: Path | None, now: int, timeout: float = _FETCH_SECONDS
) -> bytes:
    """Collateral for a quote: from the cache while it is current, else from `url`.

    Args:
        quote: a TDX quote, unverified.
        url: base URL of a PCS or PCCS.
        cache_dir: directory for documents by platform; None for no cache.
        now: Unix time: what ended before is not taken from the cache.
        timeout: seconds for all requests together.

    Returns:
        JSON of collateral as `dcap_qvl.QuoteCollateralV3.from_json` reads it.

    Raises:
        VerificationError: the quote cannot be parsed (`evidence-invalid`).
        UnavailableError: the service does not answer, or answers something else (`collateral-unavailable`).
    """
    platform = _platform(quote)
    name = f"collateral-{platform.fmspc}-{platform.ca}-{sha256_hex(url.encode())[:16]}.json"
    cached = _cached(cache_dir / name, now) if cache_dir is not None and platform.embeds_chain else None
    if cached is not None:
        return cached
    data = _fetch(quote, url, timeout, platform)
    if cache_dir is not None and platform.embeds_chain:
        _store(cache_dir / name, data)
    return data


def earliest_next_update(collateral: bytes) -> int:
    """Unix time at which the first part of a collateral document ends.

    Raises:
        ValueError: not a collateral document.
    """
    document = _Collateral.model_validate_json(collateral)
    ends = [_Dated.model_validate_json(text).next_update for text in (document.tcb_info, document.qe_identity)]
    ends += [_crl_end(bytes.fromhex(text)) for text in (document.root_ca_crl, document.pck_crl)]
    return int(min(end.timestamp() for end in ends))


def _crl_end(der: bytes) -> dt.datetime:
    end = x509.load_der_x509_crl(der).next_update_utc
    if end is None:
        raise ValueError("a CRL without nextUpdate")
    return end


def _platform(quote: bytes) -> Platform:
    try:
        parsed = dcap_qvl.parse_quote(quote)
        return Platform(parsed.fmspc().lower(), parsed.ca(), parsed.cert_chain_pem_bytes() is not None)
    except ValueError as error:
        raise VerificationError(ErrorCode.EVIDENCE_INVALID, f"the quote cannot be parsed: {error}") from error


def _fetch(quote: bytes, url: str, timeout: float, platform: Platform) -> bytes:
    async def get() -> str:
        async with asyncio.timeout(timeout):
            return str((await dcap_qvl.get_collateral(url, quote)).to_json())

    try:
        data = _without_chain(asyncio.run(get()), platform)
        earliest_next_update(data)
    except (TimeoutError, ValueError) as error:
        raise UnavailableError(
            ErrorCode.COLLATERAL_UNAVAILABLE,
            f"no collateral from {url}: {str(error) or 'no answer in time'}",
            hint="name another service in the policy's `collateral.url`, or a saved document in `collateral.file`",
        ) from error
    return data


def _without_chain(text: str, platform: Platform) -> bytes:
    """Leave out the quote's own certificate chain: it is one machine's, the rest is its whole family's."""
    document = json.loads(text)
    if platform.embeds_chain:
        document.pop("pck_certificate_chain", None)
    return json.dumps(document).encode()


def _cached(path: Path, now: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        return data if len(data) <= _MAX_BYTES and now < earliest_next_update(data) else None
    except (OSError, ValidationError, ValueError):
        return None


def _store(path: Path, data: bytes) -> None:
    """Best effort: a cache that cannot be written costs a request, nothing else."""
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
