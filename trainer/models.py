"""Types that many packages use: the strict base of all models, digests and nonces, the job's phase and status."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from trainer.encoding import parse_json

# The largest integer that every JSON reader keeps exact (RFC 7493, section 2.2).
MAX_STATUS_STEPS: Final = 2**53 - 1

MAX_REGRANT_BYTES: Final = 16 << 10
"""Size of one re-grant; with a hybrid recipient it has about 3 KB."""

MAX_BUNDLE_FILES: Final = 4096
"""Most files of a bundle, grant and manifest among them."""

MAX_PROVIDERS: Final = 64
"""Most providers that a job spec lists."""

MAX_TOTAL_STEPS: Final = 100_000_000
"""Most optimizer steps of a run: the choice of a number below it is worth 27 bits."""

MAX_TRAINED_PARAMETERS: Final = 10**12
MAX_COPIED_BYTES: Final = 2**50
"""Bounds of what a worker says of its adapter and of a merged model."""


class Strict(BaseModel):
    """Base of all models that are parsed from bytes of others: frozen, no coercion, no unknown keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


_Parsed = TypeVar("_Parsed")


def parse_strict(adapter: TypeAdapter[_Parsed], text: bytes | str) -> _Parsed:
    """Parses JSON as the type of `adapter`.

    Raises:
        ValueError: JSON that two parsers may read differently, or not of this type. The message names the field,
            never its content.
    """
    try:
        parse_json(text)  # refuses duplicate keys and NaN, which pydantic's parser accepts
        return adapter.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise ValueError(f"{where}: {first['msg']}") from None


One = Annotated[int, Field(strict=True, ge=1, le=1)]
"""The version of a format: the integer 1. `Literal[1]` accepts what compares equal to it, such as true and 1.0."""


def _refuse_number(value: object) -> object:
    if type(value) in (int, float):
        raise ValueError("expected true or false, got a number")
    return value


NO_NUMBER: Final = BeforeValidator(_refuse_number)
"""For `Literal[True]` and `Literal[False]`, which accept 1 and 0 as well."""

Sha256Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in lower-case hex, without a prefix."""

ProviderPublicKey = Annotated[str, Field(pattern=r"^ed25519:[0-9a-f]{64}$")]
"""Public key of a data provider, in the text form of `trainer.provider_keys`."""

Secret = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
"""32 secret bytes in lower-case hex; never part of a representation, which may get into a log."""

Nonce = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""32 random bytes in lower-case hex; used once."""

UnixTime = Annotated[int, Field(ge=0, le=253402300799)]
"""Seconds since 1970-01-01T00:00:00Z, up to the end of the year 9999."""


class Phase(StrEnum):
    """Phase of the job; public."""

    STARTING = "starting"
    PREPARING = "preparing"
    AWAITING_DATASET = "awaiting-dataset"
    AWAITING_GRANT = "awaiting-grant"
    OPENING = "opening"
    TRAINING = "training"
    SEALING = "sealing"
    AWAITING_PULL = "awaiting-pull"
    DONE = "done"
    FAILED = "failed"


class Activity(StrEnum):
    """What a job in the phase `training` does before its first step, in this order; public."""

    TOKENIZING = "tokenizing"
    """It reads the rows and makes token ids of them."""
    LOADING = "loading"
    """It loads the base model and uploads the tokens."""
    EVALUATING = "evaluating"
    """It measures the model as it is: samples, references, held-out rows."""


Percent = Annotated[int, Field(ge=0, le=100)]


ProviderNumbers = Annotated[
    tuple[Annotated[int, Field(ge=1, le=MAX_PROVIDERS)], ...], Field(max_length=MAX_PROVIDERS)
]
"""Numbers of providers of a joint job, counted from 1."""


class Status(Strict):
    """The public state of a running job: the answer to `GET /status`.

    `step` and `total_steps` count optimizer steps. Before the first one `activity` says what the job does, and
    `percent` how much of that is done, where that is known. `eta_seconds` is how long the steps, or the activity,
    will still take. `error` is a public code, set when `phase` is `failed`, and in `awaiting-dataset` and
    `awaiting-grant` after an upload or a re-grant that did not open, or was refused. `result_bytes` is the size of
    the sealed result, or sealed failure report, once it can be pulled: there is one on a dataset that opened and
    was refused. While a joint job waits, `received` has the numbers of the providers whose datasets are in,
    `withdrawn` of those who have taken theirs back and not sent another, and `retained` of those whose datasets it
    kept over a restart and needs a new grant for.
    """

    phase: Phase
    step: Annotated[int, Field(ge=0, le=MAX_STATUS_STEPS)] = 0
    total_steps: Annotated[int, Field(ge=0, le=MAX_STATUS_STEPS)] = 0
    activity: Activity | None = None
    percent: Percent | None = None
    eta_seconds: Annotated[int, Field(ge=0, le=MAX_STATUS_STEPS)] | None = None
    error: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,63}$")] | None = None
    result_bytes: Annotated[int, Field(ge=0, le=MAX_STATUS_STEPS)] | None = None
    received: ProviderNumbers = ()
    withdrawn: ProviderNumbers = ()
    retained: ProviderNumbers = ()

    @property
    def announces_refusal(self) -> bool:
        """Whether the job waits for another dataset, and offers the sealed report on the one that it refused."""
        is_waiting = self.phase in {Phase.AWAITING_DATASET, Phase.AWAITING_GRANT}
        return is_waiting and self.error is not None and self.result_bytes is not None

    def without_refusal(self) -> Status:
        """Returns the status once a newer dataset is there: error and report are about the one before."""
        return self.model_copy(update={"error": None, "result_bytes": None})
