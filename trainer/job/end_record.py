"""The end record: how a job ended, for the next start of the same job over the same ciphertext directory.

A container that is started again must not train again what is finished, and must not repeat what failed for good.
The operator stores the record, so it is encrypted and authenticated under a key that only this job spec in this
app can derive. The operator can still remove it, or put an earlier one back. That costs computing time, or makes
the job offer an earlier result, which the provider refuses since it is of another dataset; it changes no result.

Format: 12 bytes nonce ‖ ChaCha20-Poly1305 (RFC 8439) of the canonical JSON, with the domain as associated data.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from pydantic import Field

from trainer.atomic_files import PRIVATE_MODE, open_regular_file, replace_atomically
from trainer.encoding import canonical_json, parse_json
from trainer.errors import DATASET_FAULTS, RESUMABLE, ErrorCode
from trainer.logs import private
from trainer.models import MAX_PROVIDERS, One, Sha256Hex, Strict, UnixTime
from trainer.receipt.deletion import DestroyedItem

MAX_END_RECORD_BYTES: Final = 1 << 14

_DOMAIN: Final = b"confidential-trainer/end-record/v1"
_NONCE_BYTES: Final = 12


class PrivacySpent(Strict):
    """What results over one dataset have spent together, as far as this job's ciphertext directory tells.

    By basic composition, ε and δ of several results add up: each is trained with noise of its own, and all of them
    go to the recipients of the grant.

    Attributes:
        runs: how many runs have released weights.
        epsilon: the sum of their ε.
        delta: the sum of their δ.
    """

    runs: Annotated[int, Field(ge=1, le=2**53 - 1)]
    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    delta: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    def __add__(self, other: PrivacySpent) -> PrivacySpent:
        """Returns what both have spent together."""
        return PrivacySpent(
            runs=self.runs + other.runs,
            epsilon=self.epsilon + other.epsilon,
            delta=self.delta + other.delta,
        )


class EndRecord(Strict):
    """How a job ended.

    Attributes:
        error: public code of the failure; None if the job succeeded.
        result_sha256: digest of the sealed result, or of the sealed failure report.
        result_bytes: its size.
        dataset_manifest_sha256: digest of the manifest of the dataset that was trained on.
        ended_at: Unix time in seconds of the first offer: `linger_seconds` count from here over all starts.
        acknowledgement_sha256: digests of what each provider acknowledges this result with.
        acknowledged: whether every provider confirmed that the result arrived.
        expired: whether a start offered it until its time was over.
        destroyed: what was destroyed, and when, as in the deletion statement; empty in a record that was written
            before anything was.
        privacy: what private results over this dataset have spent, this one included; None without any.
    """

    version: One = 1
    error: Annotated[ErrorCode, Field(strict=False)] | None
    result_sha256: Sha256Hex
    result_bytes: Annotated[int, Field(ge=0, le=2**53 - 1)]
    dataset_manifest_sha256: Sha256Hex
    ended_at: UnixTime
    acknowledgement_sha256: Annotated[
        tuple[Sha256Hex, ...], Field(min_length=1, max_length=MAX_PROVIDERS)
    ]
    acknowledged: bool = False
    expired: bool = False
    destroyed: Annotated[
        dict[Annotated[DestroyedItem, Field(strict=False)], UnixTime], Field(max_length=16)
    ]
    privacy: PrivacySpent | None = None

    def spent_on(self, dataset_manifest_sha256: str) -> PrivacySpent | None:
        """Returns what private results over a dataset have spent; None if the record is about another dataset."""
        return self.privacy if self.dataset_manifest_sha256 == dataset_manifest_sha256 else None

    @property
    def is_final(self) -> bool:
        """Whether another start has nothing left to do but to offer what there is."""
        return self.error not in RESUMABLE

    @property
    def is_without_training(self) -> bool:
        """Whether the job ended because it got no dataset that could be trained on."""
        return self.error is ErrorCode.DATASET_TIMEOUT or self.error in DATASET_FAULTS

    @property
    def is_over(self) -> bool:
        """Whether the next start accepts another dataset: after a failure that the provider knows of.

        Also after one that was offered in vain: a stranger's dataset must not occupy the directory for ever.
        """
        return self.error is not None and (self.acknowledged or self.expired)


@dataclass(frozen=True, repr=False)
class EndRecordFile:
    """The file of a job's end record.

    Args:
        path: the file, in the ciphertext directory.
        key: 32 bytes that only this job spec in this app can derive.
    """

    path: Path
    key: bytearray

    def save(self, record: EndRecord) -> None:
        """Seals a record and replaces the file.

        Raises:
            UnavailableError: STORAGE_FULL.
        """
        # A random nonce suffices: a job seals a handful of records under one key.
        nonce = os.urandom(_NONCE_BYTES)
        text = canonical_json(record.model_dump(mode="json"))
        with replace_atomically(self.path, PRIVATE_MODE) as file:
            file.write(nonce + ChaCha20Poly1305(self.key).encrypt(nonce, text, _DOMAIN))

    def load(self) -> EndRecord | None:
        """Returns the record; None if there is none, or if it is none of this job."""
        try:
            with open_regular_file(self.path) as file:
                data = file.read(MAX_END_RECORD_BYTES)  # more does not authenticate
            text = ChaCha20Poly1305(self.key).decrypt(
                data[:_NONCE_BYTES], data[_NONCE_BYTES:], _DOMAIN
            )
            parse_json(text)  # refuses duplicate keys
            return EndRecord.model_validate_json(text)
        except FileNotFoundError:
            return None
        except (OSError, InvalidTag, ValueError):  # ValidationError is a ValueError
            private.warning("the end record in the ciphertext directory is none of this job")
            return None
