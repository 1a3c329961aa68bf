"""What a result is compared with: what its provider granted, knew before, and found in the opened files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from trainer.models import MAX_BUNDLE_FILES, MAX_PROVIDERS, Sha256Hex, Strict


class PoolPlace(Strict):
    """The place of a provider's dataset in the pool of a joint job.

    Attributes:
        number: of the provider in the job spec, counted from 1.
        providers: how many the job spec lists.
        own_recipients: age recipients of this provider's receipt, and of reports on its dataset alone.
    """

    number: Annotated[int, Field(ge=1, le=MAX_PROVIDERS)]
    providers: Annotated[int, Field(ge=2, le=MAX_PROVIDERS)]
    own_recipients: Annotated[tuple[str, ...], Field(max_length=64)]


class GrantTerms(Strict):
    """What the provider's record of its grant says a result must be; no secret is among it.

    Attributes:
        recipients: age recipients of the result, and no others.
        manifest_sha256: digest of the dataset's manifest.
        dataset_files: maps each file of the dataset to its salted digest.
        max_epsilon: largest ε that the grant accepts; None if it demands no differential privacy.
        max_delta: largest δ that the grant accepts; None likewise.
        rows: number of rows that were sealed; None if it is not known, or if the receipt counts no rows.
        pool: the dataset's place among those of a joint job; None in a job of one provider.
    """

    recipients: Annotated[tuple[str, ...], Field(max_length=64)]
    manifest_sha256: Sha256Hex
    dataset_files: Annotated[dict[str, Sha256Hex], Field(max_length=MAX_BUNDLE_FILES)]
    max_epsilon: float | None = None
    max_delta: float | None = None
    rows: Annotated[int, Field(ge=0)] | None = None
    pool: PoolPlace | None = None


@dataclass(frozen=True)
class ExpectedResult:
    """What the provider compares a statement with: what it knew before, and what it found in the opened result.

    Args:
        job_spec_sha256: digest of the attested job spec.
        compose_sha256: attested compose hash.
        files: maps each file of the opened result, except the receipt and its evidence, to its SHA-256.
        failure: error code in the opened failure report; None if there is none that can be read.
        stanzas: how many stanzas the sealed file has, each of which lets one recipient open it.
        attested_at: when the claims that the dataset was sealed to were issued, Unix seconds.
        quoted_at: when the claims beside the receipt were issued, Unix seconds.
        opened_at: when the result was opened, Unix seconds.
        terms: the grant's; None if the provider no longer has its record.
        own_recipients: age recipients of the provider's identities, for want of a grant; None without them.
    """

    job_spec_sha256: str
    compose_sha256: str
    files: Mapping[str, str]
    failure: str | None
    stanzas: int
    attested_at: int
    quoted_at: int
    opened_at: int
    terms: GrantTerms | None
    own_recipients: frozenset[str] | None = frozenset()
