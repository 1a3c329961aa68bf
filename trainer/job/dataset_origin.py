"""How a sealed dataset reached the job, and what follows from the error of one that does not open."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from trainer.errors import ErrorCode

AWAIT_GRANT: Final = frozenset({ErrorCode.NO_IDENTITY_MATCH, ErrorCode.GRANT_EXPIRED})
"""Why a dataset from before a restart does not open although nothing is wrong with it."""

FILE_FAULTS: Final = frozenset(
    {
        ErrorCode.PAYLOAD_INVALID,
        ErrorCode.BUNDLE_INVALID,
        ErrorCode.STORAGE_FULL,
        ErrorCode.GRANT_WITHDRAWN,
    }
)
"""Why a dataset does not open after its provider granted it again: the file itself, which is good for nothing."""


class DatasetOrigin(Enum):
    """Whether a dataset is from before this start, was uploaded, or was granted again."""

    LEFT_OVER = auto()
    UPLOAD = auto()
    REGRANT = auto()
